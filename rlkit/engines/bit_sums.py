"""Sums by which tensors are compared exactly, however they are laid out: what was sent to a rollout engine, and what it holds.

An element's bits, read as an integer b, count b (b + ODD), and the sum is taken modulo 2^64. It does not depend on order or shape, the
sums of parts add up to that of the whole, and the zeros of a padding add nothing. The square makes changes of a few last bits, which often
cancel in a plain sum, almost never cancel. What it cannot see is an exchange of elements inside one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ODD = 2654435761  # 2^32 / golden ratio, a prime: b (b + ODD) is 0 for b = 0 and differs from its neighbours in many bits
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
BLOCK = {"cpu": 2**16, "cuda": 2**22}  # elements at once: temporaries stay in the cache of a core, or small beside the weights


def sum_bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor of any dtype and shape; [] int64 on its device. It does not synchronize."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda i: -strides[i])
    flat = tensor.detach().permute(order).reshape(-1).view(INTEGERS[tensor.element_size()])  # a copy only where there are gaps
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for block in flat.split(BLOCK.get(tensor.device.type, BLOCK["cuda"])):
        bits = block.to(torch.int64)
        total += (bits + ODD).mul_(bits).sum()
    return total


def sum_as(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The sum of a tensor in the dtype of what was sent; None where it holds less."""
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return sum_bits(tensor)
    return sum_bits(tensor.to(dtype)) if tensor.element_size() > dtype.itemsize else None


def read_totals(totals: Sequence[Tensor | None]) -> list[int]:
    """The numbers, 0 for None; one wait for the device."""
    there = [total for total in totals if total is not None]
    numbers: Iterator[int] = iter(torch.stack(there).tolist() if there else [])
    return [0 if total is None else next(numbers) for total in totals]


@dataclass(frozen=True)
class SentTensor:
    """What is kept of a tensor that was sent."""

    total: Tensor  # [] int64, of sum_bits
    shape: torch.Size
    dtype: torch.dtype


@dataclass
class SentWeights:
    """What is sent to a rollout engine in one sync; each tensor is summed as it passes, where it comes from."""

    weights: dict[str, SentTensor] = field(default_factory=dict)  # by the names of the checkpoint
    adapter: dict[str, SentTensor] = field(default_factory=dict)  # by the names of peft's files; B times the scaling

    def record(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors."""
        for name, tensor in tensors:
            self.weights[name] = SentTensor(sum_bits(tensor), tensor.shape, tensor.dtype)
            yield name, tensor

    def record_adapter(self, tensors: Iterator[tuple[str, Tensor]], scaling: float) -> Iterator[tuple[str, Tensor]]:
        """The same tensors. scaling: of B A, which an engine multiplies into B."""
        for name, tensor in tensors:
            held = tensor.detach() * scaling if "lora_B" in name else tensor
            self.adapter[name] = SentTensor(sum_bits(held), tensor.shape, tensor.dtype)
            yield name, tensor


@dataclass(frozen=True)
class WeightComparison:
    """How what an engine holds compares with what was sent to it."""

    differing: list[str]  # names of tensors
    uncompared: list[str]  # names of tensors that the engine holds in another form

    def __add__(self, other: WeightComparison) -> WeightComparison:
        return WeightComparison(self.differing + other.differing, self.uncompared + other.uncompared)


def compare_state(held: Mapping[str, Tensor], sent: Mapping[str, SentTensor]) -> WeightComparison:
    """Tensors that are held under the names under which they were sent."""
    totals = {name: sum_as(held[name], tensor.dtype) for name, tensor in sent.items()}
    own, theirs = read_totals(list(totals.values())), read_totals([tensor.total for tensor in sent.values()])
    differing = [name for name, one, other in zip(sent, own, theirs, strict=True) if totals[name] is not None and one != other]
    return WeightComparison(differing, [name for name, total in totals.items() if total is None])
