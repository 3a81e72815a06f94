"""The model that a recipe starts from: where it is, in which dtype, with which adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkit.assembly import plan
from rlkit.builtin.model import ensure_model
from rlkit.config.recipe import Recipe
from rlkit.data.availability import is_hub_reachable, suggest_paths
from rlkit.engines.gguf_file import convert_gguf
from rlkit.engines.lora import LoraSettings
from rlkit.errors import UserError
from rlkit.runtime.cache import ensure_folder, find_cache_folder
from rlkit.runtime.manifest import hash_file
from rlkit.runtime.model_path import GGUF, ModelPlace, parse_model_path


@dataclass(frozen=True)
class LocatedModel:
    """`path`: a folder, or a name of the hub; `origin`: the file that the folder was made of and its digest, where there is one."""

    path: str
    origin: str | None = None


def locate_model(recipe: Recipe, dtype: torch.dtype, main: bool) -> LocatedModel:
    """Where the model is. The built-in one is made, and one in GGUF converted, where this machine has not done it yet.

    The rank that is `main` prints progress. Raises UserError where there is no such model.
    """
    if recipe.model.path == "builtin":
        return LocatedModel(str(ensure_model(find_cache_folder(), print_progress if main else None)))
    place = parse_model_path(recipe.model.path)
    if place.gguf is None:
        return LocatedModel(place.place)
    file = find_gguf(place, recipe)
    digest = hash_file(file)
    folder = find_cache_folder() / f"gguf-{digest[:32]}-{str(dtype).removeprefix('torch.')}"
    if main and not folder.is_dir():
        print(f"converting {file.name} to {folder}, once on this machine", flush=True)
    return LocatedModel(str(ensure_folder(folder, lambda part: convert_gguf(file, part, dtype))), f"{file}, BLAKE3 {digest}")


def replace_path(recipe: Recipe, model: LocatedModel) -> Recipe:
    """The recipe with the folder in place of the file that it was made of, so that the plan reads its config.json."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": model.path})}) if model.origin else recipe


def print_progress(done: int, total: int, loss: float) -> None:
    """Of the built-in model."""
    if done % 100 == 0 or done <= 10 or done == total:
        print(f"making the built-in model, once on this machine: {done}/{total}  loss {loss:.3f}", flush=True)


def find_gguf(place: ModelPlace, recipe: Recipe) -> Path:
    """The file of a model in GGUF, from the hub where no such folder is here. Raises UserError where there is none."""
    if file := place.file:
        if not file.is_file():
            raise UserError(f"model.path {file} does not exist{suggest_paths(file, lambda path: path.suffix == GGUF, 'file in GGUF')}")
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    offline = recipe.offline or not is_hub_reachable()
    try:
        return Path(hf_hub_download(place.place, str(place.gguf), local_files_only=offline))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = "the hub cannot be asked (offline=true, or no network) and it is not in the cache" if offline else str(error).splitlines()[0]
        raise UserError(f"model.path {recipe.model.path}: {place.gguf} of the hub's {place.place} cannot be loaded: {why}") from error


def find_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Of the weights in training and sampling."""
    if recipe.model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.model.dtype]


def build_lora(recipe: Recipe) -> LoraSettings | None:
    """None where all weights are trained."""
    lora = recipe.model.lora
    if lora.rank is None:
        return None
    return LoraSettings(lora.rank, lora.alpha, lora.targets, lora.dora, recipe.seed, lora.rslora, lora.modules_to_save)


def check_length(recipe: Recipe, path: str) -> None:
    """Raises UserError where the longest sample does not fit into the model's context."""
    config = Path(path) / "config.json"
    context = json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    longest = plan.longest_sample(recipe)
    if context and longest > context:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens = {longest} is more than the {context} tokens that model.path {path} "
            "can hold; lower one of them"
        )
