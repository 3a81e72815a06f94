"""The model that a recipe starts from: where it is, in which dtype, with which adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlkit.assembly import plan
from rlkit.assembly.model_files import CAUSAL_LM, CLASSIFIER, check_config, check_model_folder, read_config
from rlkit.builtin.model import ensure_model
from rlkit.config.recipe import Recipe
from rlkit.data.availability import is_hub_reachable, suggest_paths
from rlkit.data.renderer import Renderer
from rlkit.engines.generation_config import find_generation_config, read_end_tokens
from rlkit.engines.gguf_file import convert_gguf, require_gguf
from rlkit.engines.lora import LoraSettings
from rlkit.errors import UserError
from rlkit.rewarding.spec import TRUST
from rlkit.runtime.cache import ensure_folder, find_cache_folder
from rlkit.runtime.manifest import hash_file
from rlkit.runtime.model_path import GGUF, ModelPlace, is_hub_name, parse_model_path

NOT_NEEDED = ["*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.ot", f"*{GGUF}", "original/*"]  # weights for other programs


@dataclass(frozen=True)
class LocatedModel:
    """`path`: a folder, or a name of the hub; `origin`: what is in the folder, where model.path does not name it; `version`: the commit or
    digest that identifies it, where its files need not be read for that."""

    path: str
    origin: str | None = None
    version: Mapping[str, str] | None = None


def locate_model(recipe: Recipe, dtype: torch.dtype, main: bool) -> LocatedModel:
    """Where the model is. The built-in one is made, and one in GGUF converted, where this machine has not done it yet.

    The rank that is `main` prints progress. Raises UserError where there is no such model.
    """
    if recipe.model.path == "builtin":
        return LocatedModel(str(ensure_model(find_cache_folder(), print_progress if main else None)))
    place = parse_model_path(recipe.model.path)
    if place.gguf is None:
        if recipe.model.revision is None:
            return LocatedModel(place.place)
        snapshot = find_snapshot(place, recipe)
        commit = Path(snapshot).name
        return LocatedModel(snapshot, f"{place.place}, revision {recipe.model.revision}, commit {commit}", {"commit": commit})
    file = find_gguf(place, recipe)
    digest = hash_file(file)
    folder = find_cache_folder() / f"gguf-{digest[:32]}-{str(dtype).removeprefix('torch.')}"
    if main and not folder.is_dir():
        print(f"converting {file.name} to {folder}, once on this machine", flush=True)
    path = str(ensure_folder(folder, lambda part: convert_gguf(file, part, dtype)))
    return LocatedModel(path, f"{file}, BLAKE3 {digest}", {file.name: digest})


def replace_path(recipe: Recipe, model: LocatedModel) -> Recipe:
    """The recipe with the folder in place of what it was made of, so that the plan reads its config.json."""
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

    return Path(fetch(recipe, lambda **settings: hf_hub_download(place.place, str(place.gguf), **settings)))


def find_snapshot(place: ModelPlace, recipe: Recipe, left_out: Sequence[str] = ()) -> str:
    """The folder of one revision of a hub name, so that all that is loaded is of this revision. Raises UserError where there is none.

    left_out: patterns of files that are not needed this time.
    """
    from huggingface_hub import snapshot_download

    return fetch(recipe, lambda **settings: snapshot_download(place.place, ignore_patterns=[*NOT_NEEDED, *left_out], **settings))


def find_commit(name: str, what: str, offline: bool) -> str:
    """The commit at which a model of the hub is; `what`: its name in messages. Raises UserError where it cannot be found."""
    from huggingface_hub import hf_hub_download

    return Path(fetch_by_name(what, None, offline, lambda **settings: hf_hub_download(name, "config.json", **settings))).parent.name


def fetch(recipe: Recipe, download: Callable[..., str]) -> str:
    """What a download of the recipe's model returns. Raises UserError."""
    revision = recipe.model.revision
    what = f"model.path {recipe.model.path}" + (f" with model.revision={revision}" if revision else "")
    return fetch_by_name(what, revision, recipe.offline, download)


def fetch_by_name(what: str, revision: str | None, offline: bool, download: Callable[..., str]) -> str:
    """What a download of the hub returns, without a network from its cache. Raises UserError."""
    offline = offline or not is_hub_reachable()
    try:
        return download(revision=revision, local_files_only=offline)
    except (OSError, ValueError) as error:  # the hub's own errors are of both kinds
        why = (
            "the hub cannot be asked (offline=true, or no network) and it is not in the cache; name a folder, or model.path=builtin"
            if offline
            else str(error).splitlines()[0]
        )
        raise UserError(f"{what} cannot be loaded: {why}") from error


def check_models(recipe: Recipe) -> None:
    """Raises UserError for all that makes a model unusable and that files on this disk show; the hub is not asked for one of its names."""
    for name, reward in (recipe.rewards or {}).items():
        scorer = Path(str(reward.args.get("model"))).expanduser()
        if reward.path == "reward_model" and scorer.is_dir():
            code = {"auto_class": CLASSIFIER, "trust_remote_code": reward.args.get(TRUST, False)}
            check_model_folder(scorer, f"rewards.{name}: the reward model {scorer}", key=f"rewards.{name}.args.{TRUST}", **code)
    path, revision = recipe.model.path, recipe.model.revision
    place = parse_model_path(path)
    folder = Path(place.place).expanduser()
    if revision and (path == "builtin" or place.file or folder.is_dir()):
        raise UserError(
            f"model.revision={revision} is of a name of the hub, and model.path {path} is on this disk; set model.revision=null"
        )
    if place.gguf:
        require_gguf(f"model.path {path}")
        if place.file and place.file.parent.is_dir():
            find_gguf(place, recipe)
    elif path != "builtin" and folder.is_dir():
        check_length(recipe, place.place, check_folder(recipe, folder))
    elif path != "builtin" and folder.is_file():
        raise UserError(f"model.path {path} is a file; name the folder of the model, or a file whose name ends with {GGUF}")
    elif path != "builtin" and "://" not in path and not is_hub_name(path):
        raise UserError(f"model.path {path} does not exist{suggest_paths(folder, Path.is_dir, 'folder')}")


def check_folder(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The content of the config.json of a folder with the recipe's model. Raises UserError."""
    kind, trust = choose_auto_class(recipe), recipe.model.trust_remote_code
    config = check_model_folder(folder, f"model.path {folder}", auto_class=kind, trust_remote_code=trust)
    if file := find_generation_config(str(folder), offline=True):
        read_end_tokens(file)
    return config


def check_hub_config(recipe: Recipe, name: str) -> dict[str, Any]:
    """As check_folder, of a model of the hub whose other files may not be here yet."""
    from huggingface_hub import hf_hub_download

    try:
        folder = Path(fetch(recipe, lambda **settings: hf_hub_download(name, "config.json", **settings))).parent
    except UserError as error:
        beside = suggest_paths(Path(name).expanduser(), Path.is_dir, "folder")
        raise UserError(f"model.path {name} is not a folder here{beside}\nas one of the hub: {error}") from error
    config = read_config(folder, f"model.path {name}")
    check_config(config, f"model.path {name}", auto_class=choose_auto_class(recipe), trust_remote_code=recipe.model.trust_remote_code)
    return config


def choose_auto_class(recipe: Recipe) -> str:
    """The class of transformers that loads the recipe's model."""
    return CLASSIFIER if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model" else CAUSAL_LM


def build_renderer(recipe: Recipe, path: str) -> Renderer:
    """Tokenizer and chat template of the model. Raises UserError where tokenizer, model and longest sample do not fit together."""
    model = recipe.model
    config = check_folder(recipe, Path(path).expanduser()) if Path(path).expanduser().is_dir() else check_hub_config(recipe, path)
    load_model_config(recipe, path)  # before the tokenizer, which reads it too and would be blamed for its faults
    renderer = Renderer(
        path, chat_template_kwargs=model.chat_template_kwargs, offline=recipe.offline, trust_remote_code=model.trust_remote_code
    )
    check_length(recipe, path, config)
    size = read_text_config(config).get("vocab_size")
    if isinstance(size, int):
        renderer.check_vocabulary(size)
    return renderer


def load_model_config(recipe: Recipe, path: str) -> Any:
    """The configuration of the recipe's model. Raises UserError."""
    from rlkit.engines.loading import load_config

    offline = recipe.offline or not (Path(path).expanduser().is_dir() or is_hub_reachable())
    return load_config(path, "model.path", offline=offline, trust_remote_code=recipe.model.trust_remote_code)


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


def check_length(recipe: Recipe, path: str, config: dict[str, Any]) -> None:
    """Raises UserError where the longest sample does not fit into the model's context."""
    text = read_text_config(config)
    context = text.get("max_position_embeddings", text.get("n_positions"))
    longest = plan.longest_context(recipe)
    if isinstance(context, int) and longest > context:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens = {longest} is more than the {context} tokens that model.path {path} "
            f"can hold; lower one of them{', or those of eval.sets' if longest > plan.longest_sample(recipe) else ''}"
        )


def read_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that is about text."""
    text = config.get("text_config")
    return config | (text if isinstance(text, dict) else {})
