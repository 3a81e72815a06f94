"""Protocols by capability; each engine fulfils those it can, none raises NotImplementedError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlkit.types import Request, Sample


class RolloutEngine(Protocol):
    """Samples completions, streamed: requests go in at any time, samples come out as they finish."""

    version: int | None  # of the weights it holds; None before the first load, when it refuses to sample

    @property
    def pending(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def advance(self) -> list[Sample]:
        """Works for a moment; returns the samples that finished in it."""
        ...

    def abort(self) -> list[Sample]:
        """Ends all pending requests; returns what they had, with stop ABORTED."""
        ...

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Takes in every tensor of the checkpoint. Raises RunFailed naming the tensors that are missing or unknown."""
        ...

    def received(self) -> Mapping[str, Tensor]:
        """A checksum of each tensor as it arrived in the last load."""
        ...

    def wake_weights(self) -> None: ...

    def wake_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


class Scores(Protocol):
    """Says how likely completions are."""

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        """log-probs and entropy of the completion tokens on the grid [B, width], float32, 0 beyond a completion."""
        ...


@dataclass(frozen=True)
class Update:
    """What came of one optimizer step."""

    applied: bool  # False: a gradient was not finite, the weights are as before
    grad_norm: float  # before clipping


class Values(Protocol):
    """Says what is still to come."""

    def values(self, samples: Sequence[Sample], width: int) -> Tensor:
        """Before each completion token, on the grid [B, width], float32, 0 beyond a completion."""
        ...


class Learner(Protocol):
    """Takes losses, moves weights."""

    def training(self) -> AbstractContextManager[None]:
        """Inside it what the model says keeps what a gradient needs."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds d loss / d weights, summed over ranks, to the gradient."""
        ...

    def idle(self) -> None:
        """A pass that adds nothing, on ranks with fewer micro-batches than others."""
        ...

    def trial(self, samples: Sequence[Sample]) -> None:
        """A forward and a backward pass with zero weights, which changes nothing, even where memory runs out in it."""
        ...

    def step(self, lr: float) -> Update: ...

    def save(self, folder: Path) -> None:
        """Weights and optimizer state by parameter name, whatever the number of ranks or the ZeRO stage."""
        ...

    def load(self, folder: Path) -> None: ...


class Source(Protocol):
    """Where weights come from."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the checkpoint by its Hugging Face name, tied ones and buffers too, on every rank in the same order."""
        ...


class Offloadable(Protocol):
    """Can leave the accelerator's memory and come back."""

    def park(self) -> None: ...

    def resume(self) -> None: ...


class Policy(Scores, Learner, Source, Offloadable, Protocol):
    """The model being trained."""

    def export(self, folder: Path, adapter: bool) -> None:
        """A Hugging Face folder without tokenizer; `adapter`: only what was trained, as a peft folder."""
        ...


class Critic(Values, Learner, Offloadable, Protocol):
    """The model that learns what is to come."""


def checksum(tensor: Tensor) -> Tensor:
    """A number [] int64 on the tensor's own device that equal tensors share and different ones hardly ever: sums of its bits.

    Nothing waits for it, and nothing the size of the tensor is made. Its second half counts three times, so that swaps are seen.
    """
    flat = tensor.detach().contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    bits = flat.view(torch.uint8)
    words, rest = bits[: len(bits) // 8 * 8].view(torch.int64), bits[len(bits) // 8 * 8 :]
    first, second = words[: len(words) // 2], words[len(words) // 2 :]
    return first.sum() + 3 * second.sum() + 5 * rest.sum(dtype=torch.int64)
