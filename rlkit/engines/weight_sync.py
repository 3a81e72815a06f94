"""Weights on their way from the trainer to the rollout engine: which travel together, in which dtype, under which name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

BUCKET = {"cuda": 2**30, "cpu": 2**26}  # bytes gathered at once: enough for a full-speed collective, little beside the weights


def buckets(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut so that the sizes of a bucket sum to at most `limit`; a larger one stands alone."""
    cut: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not cut or filled + size > limit:
            cut.append([])
            filled = 0
        cut[-1].append(name)
        filled += size
    return cut


def elements(tensor: Any) -> int:
    """Of a tensor as a whole: a shard says its own number, and that of the whole only under another name."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def stream(
    parts: Mapping[str, Sequence[Tensor]],
    gathered: Callable[[list[Tensor]], AbstractContextManager[Any]],
    whole: Callable[[str], Tensor],
    limit: int,
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for every name, bucket by bucket, on every rank in the same order.

    parts: by name what must be gathered for it; whole: called inside `gathered`, gives what is sent. That must be a copy wherever a
    tensor is sharded: the receiver keeps tensors until it has all of a layer, and the gathered storage is gone by then.
    """
    sizes = {name: sum(elements(part) * part.element_size() for part in tensors) for name, tensors in parts.items()}
    for names in buckets(sizes, limit):
        wanted = {id(part): part for name in names for part in parts[name]}  # a tied tensor has two names
        with gathered(list(wanted.values())), torch.no_grad():
            ready = [(name, whole(name)) for name in names]
        while ready:
            yield ready.pop(0)  # one reference less: what was taken in is free


def sendable(tensor: Any, dtype: torch.dtype) -> Tensor:
    """A tensor as it is sent: floats in the receiver's dtype; a copy where it is sharded or changes dtype."""
    held: Tensor = tensor.detach()
    target = dtype if held.is_floating_point() else held.dtype
    return held.to(target, copy=hasattr(tensor, "ds_id"))
