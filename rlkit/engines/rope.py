"""Position embeddings whose frequencies depend on the longest row: longrope (Ding et al. 2024, arXiv 2402.13753) and dynamic NTK.

Transformers chooses them in each forward pass by the largest position in it, so that a short sample beside a long one would be another
sample, and a token of a growing completion another token. vLLM chooses once, by the longest sample that it may get. So do trainer and
sampler here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LONGROPE, DYNAMIC, FIXED = "longrope", "dynamic", "default"  # types of position embeddings, as transformers names them


def pin_rope(model: nn.Module, longest: int) -> None:
    """Lets each position embedding choose its frequencies for a row of `longest` tokens, and keep them."""
    for module, layer_type in list(find_changing(model)):
        buffer = next(module.buffers(recurse=False))
        more = {} if layer_type is None else {"layer_type": layer_type}
        row = torch.zeros(1, 1, device=buffer.device), torch.tensor([[longest - 1]], device=buffer.device)
        module(*row, **more)
        if layer_type is None:
            module.rope_type = FIXED
        else:
            module.rope_type[layer_type] = FIXED


def find_changing(model: nn.Module) -> Iterator[tuple[Any, str | None]]:
    """Modules whose frequencies depend on the row, each with the type of layers that it is for, None where it is for all."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if isinstance(kind, str) and (kind == LONGROPE or DYNAMIC in kind):
                yield module, layer_type
