"""The routers of a mixture of experts compute in float32, whatever the dtype of the model.

A router multiplies a token's hidden state with a row for each expert; the softmax or sigmoid of these logits chooses the experts of the
token and weighs them. In bfloat16 logits have 8 bits, so that experts tie, and a rounding decides differently in another kernel. DeepSeek,
GLM-4, Ernie and others compute the logits in float32 by themselves, Qwen, Mixtral and OLMoE in the dtype of the model. Here the product
of all of them is computed in float32, of weights and hidden states as they are in the model's dtype; nothing changes in a float32 model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """The routers by their names, as transformers declares them where it records their logits; empty for a dense model.

    JetMoE records some from the attention around a router: the innermost is the router.
    """
    found: dict[str, nn.Module] = {}
    for prefix, part in model.named_modules():
        recorders = getattr(part, "_can_record_outputs", None)
        recorder = recorders.get("router_logits") if isinstance(recorders, Mapping) else None
        for one in recorder if isinstance(recorder, Sequence) else [recorder]:
            kind, place = getattr(one, "target_class", one), getattr(one, "layer_name", None)
            if not isinstance(kind, type):
                continue
            inside = part.named_modules(prefix=prefix)
            found |= {name: module for name, module in inside if isinstance(module, kind) and (place is None or place in name)}
    return {name: module for name, module in found.items() if not any(other.startswith(f"{name}.") for other in found)}


def compute_routers_in_float32(model: nn.Module) -> None:
    for router in find_routers(model).values():
        for module in router.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.forward = in_float32(module)


def in_float32(module: nn.Module) -> Callable[..., Any]:
    """The forward pass of a module, in float32 of its inputs and weights.

    For that time a copy in float32 stands before each weight. F.linear is not the place to do it, since ZeRO 3 puts a function of its own
    there.
    """
    forward = module.forward

    @wraps(forward)
    def float32_forward(*arguments: Any, **keywords: Any) -> Any:
        weights = {name: weight.float() for name, weight in module.named_parameters(recurse=False)}
        vars(module).update(weights)
        try:
            return forward(*map(to_float32, arguments), **{name: to_float32(value) for name, value in keywords.items()})
        finally:
            for name in weights:
                del vars(module)[name]

    return float32_forward


def to_float32(value: Any) -> Any:
    """A floating-point tensor in float32, anything else as it is."""
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value
