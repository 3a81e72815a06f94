"""Copies of host tensors to a device for which the host does not wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes, of each tensor in the copy


def copy_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on a device, in one copy from pinned memory."""
    if device.type == "cpu":
        return list(tensors)
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + -(-len(part) // ALIGNMENT) * ALIGNMENT)
    staged = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, part in zip(starts[:-1], parts, strict=True):
        staged[start : start + len(part)] = part
    moved = staged.to(device, non_blocking=True)
    spans = zip(tensors, starts[:-1], parts, strict=True)
    return [moved[start : start + len(part)].view(tensor.dtype).view(tensor.shape) for tensor, start, part in spans]
