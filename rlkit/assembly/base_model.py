"""The model that a recipe begins from: where it is, in which dtype, with which adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rlkit.assembly import plan
from rlkit.builtin.model import ensure_model, find_cache_folder
from rlkit.config.recipe import Recipe
from rlkit.engines.lora import LoraSettings
from rlkit.errors import UserError


def make_base_model(recipe: Recipe, main: bool) -> str:
    """The path of the model; the built-in one is made here if this machine has not made it yet, and `main` tells of it."""
    if recipe.model.path != "builtin":
        return recipe.model.path

    def progress(done: int, total: int, loss: float) -> None:
        if main and (done % 100 == 0 or done <= 10 or done == total):
            print(f"making the built-in model, once on this machine: {done}/{total}  loss {loss:.3f}", flush=True)

    return str(ensure_model(find_cache_folder(), progress))


def dtype_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.model.dtype]


def lora_of(recipe: Recipe) -> LoraSettings | None:
    lora = recipe.model.lora
    return LoraSettings(lora.rank, lora.alpha, lora.targets, lora.dora, recipe.seed) if lora.rank else None


def check_length(recipe: Recipe, path: str) -> None:
    """The longest sample fits into the model's context. Raises UserError where it does not."""
    config = Path(path) / "config.json"
    context = json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    if context and plan.longest(recipe) > context:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens = {plan.longest(recipe)} is more than the {context} tokens that model.path {path} "
            "can hold; lower one of them"
        )
