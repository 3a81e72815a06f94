"""Where vLLM 0.32 computes another model than transformers: changes of a configuration by which it computes the same."""

from __future__ import annotations

from typing import Any

from rlkit.engines.rope import DYNAMIC, FIXED


def build_overrides(config: Any) -> dict[str, Any]:
    """vLLM's `hf_overrides` for a model with this configuration, none of whose samples is longer than its context; mostly empty."""
    return fix_dynamic(config) | narrow_window(config)


def fix_dynamic(config: Any) -> dict[str, Any]:
    """Dynamic NTK changes nothing within the context; vLLM stretches frequencies for the longest context that the model may have."""
    rope = getattr(config, "rope_parameters", None) or {}
    if DYNAMIC not in str(rope.get("rope_type")) or rope.get("alpha"):
        return {}
    return {"rope_parameters": {**{name: value for name, value in rope.items() if name != "factor"}, "rope_type": FIXED}}


def narrow_window(config: Any) -> dict[str, Any]:
    """In layers of Cohere 2 vLLM attends to one token more than the window has."""
    return {"sliding_window": config.sliding_window - 1} if config.model_type == "cohere2" and config.sliding_window else {}
