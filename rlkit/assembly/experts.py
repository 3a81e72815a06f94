"""What a recipe cannot do with a mixture of experts, by the config.json of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.assembly import plan
from rlkit.assembly.shapes import EXPERTS
from rlkit.config.recipe import Recipe
from rlkit.errors import UserError


def check_experts(recipe: Recipe) -> None:
    """Raises UserError for vLLM without a GPU: there it takes new weights of experts wrongly (vLLM 0.32)."""
    count = count_experts(read_settings(recipe))
    if count > 1 and not recipe.offline_algorithm and recipe.engine.rollout == "vllm" and plan.find_gpu_memory(recipe) is None:
        raise UserError(
            f"engine.rollout=vllm: model.path {recipe.model.path} is a mixture of {count} experts, of which vLLM takes new weights wrongly "
            "without a GPU; set it to hf"
        )


def read_settings(recipe: Recipe) -> Mapping[str, Any]:
    """The config.json of a model on this disk; empty where there is none that can be read, which is refused elsewhere."""
    try:
        config = json.loads((Path(recipe.model.path) / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, Mapping) else {}


def count_experts(config: Mapping[str, Any]) -> int:
    """Experts of a layer; 0 for a dense model."""
    parts = [config, config.get("text_config")]
    return max(
        (part[name] for part in parts if isinstance(part, Mapping) for name in EXPERTS if isinstance(part.get(name), int)), default=0
    )
