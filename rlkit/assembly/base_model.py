"""The model that a recipe starts from: where it is, in which dtype, with which adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rlkit.assembly import plan
from rlkit.builtin.model import ensure_model, find_cache_folder
from rlkit.config.recipe import Recipe
from rlkit.engines.lora import LoraSettings
from rlkit.errors import UserError


def locate_model(recipe: Recipe, main: bool) -> str:
    """The path of the model. The built-in one is made where this machine has not made it yet; the rank that is `main` prints progress."""
    if recipe.model.path != "builtin":
        return recipe.model.path

    def print_progress(done: int, total: int, loss: float) -> None:
        if main and (done % 100 == 0 or done <= 10 or done == total):
            print(f"making the built-in model, once on this machine: {done}/{total}  loss {loss:.3f}", flush=True)

    return str(ensure_model(find_cache_folder(), print_progress))


def find_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Of the weights in training and sampling."""
    if recipe.model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.model.dtype]


def build_lora(recipe: Recipe) -> LoraSettings | None:
    """None where all weights are trained."""
    lora = recipe.model.lora
    return LoraSettings(lora.rank, lora.alpha, lora.targets, lora.dora, recipe.seed) if lora.rank else None


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
