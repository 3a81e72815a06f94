"""Where vLLM 0.32 computes another model than transformers: changes of a configuration by which it computes the same."""

from __future__ import annotations

from typing import Any

import torch

from rlkit.engines.rope import DYNAMIC, FIXED
from rlkit.errors import UserError

HALF_ACTIVATIONS = ("xielu",)  # whose parameters vLLM holds in bfloat16 (Apertus): log-probs were 1.5e-3 nats off in float32

NOT_RELOADED = ("gemma3n", "gemma3n_text")  # of which vLLM returned NaN for log-probs once it had got new weights, seen on a CPU


def build_overrides(config: Any, dtype: torch.dtype, float32_head: bool = False) -> dict[str, Any]:
    """vLLM's `hf_overrides` for a model with this configuration, none of whose samples is longer than its context; mostly empty.
    float32_head: logits are computed in float32.

    Raises UserError where no setting makes it the same.
    """
    if config.model_type in NOT_RELOADED:
        raise UserError(f"models of type {config.model_type}: vLLM returns no log-probs once it has new weights; set engine.rollout=hf")
    activation = getattr(config, "hidden_act", None)
    if activation in HALF_ACTIVATIONS and dtype == torch.float32:
        raise UserError(
            f"models of type {config.model_type}: vLLM holds parameters of their activation {activation} in bfloat16, and samples from "
            "another policy than one in float32; set engine.rollout=hf or model.dtype=bfloat16"
        )
    return fix_dynamic(config) | narrow_window(config) | ({"head_dtype": "float32"} if float32_head else {})


def fix_dynamic(config: Any) -> dict[str, Any]:
    """Dynamic NTK changes nothing within the context; vLLM stretches frequencies for the longest context that the model may have."""
    rope = getattr(config, "rope_parameters", None) or {}
    if DYNAMIC not in str(rope.get("rope_type")) or rope.get("alpha"):
        return {}
    return {"rope_parameters": {**{name: value for name, value in rope.items() if name != "factor"}, "rope_type": FIXED}}


def narrow_window(config: Any) -> dict[str, Any]:
    """In layers of Cohere 2 vLLM attends to one token more than the window has."""
    return {"sliding_window": config.sliding_window - 1} if config.model_type == "cohere2" and config.sliding_window else {}
