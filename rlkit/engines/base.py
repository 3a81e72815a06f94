"""Protocols by capability: each engine has those that it can fulfil, and none raises NotImplementedError."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlkit.engines.bit_sums import SentWeights, WeightComparison
from rlkit.errors import RunFailed
from rlkit.types import Request, Sample, Stop


class RolloutEngine(Protocol):
    """Samples completions as a stream: requests are added at any time, samples are returned as they finish."""

    version: int | None  # of the weights it holds; None before the first load, when it refuses to sample
    tokens_per_advance: int  # the most that one call of `advance` adds to a sample

    @property
    def pending(self) -> int: ...

    def add(self, request: Request) -> None: ...

    def advance(self) -> list[Sample]:
        """Does a short piece of work; returns the samples that finished in it."""
        ...

    def abort(self) -> list[Sample]:
        """Ends all pending requests; returns the tokens that each had so far, with stop ABORTED, as a later request can continue them."""
        ...

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Replaces every tensor of the checkpoint. Raises RunFailed with the names of tensors that are missing or unknown."""
        ...

    def compare_weights(self, sent: SentWeights) -> WeightComparison:
        """What it holds now, against what was sent in the last load."""
        ...

    def wake_weights(self) -> None: ...

    def wake_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


class Scores(Protocol):
    """Returns log-probs of completions."""

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        """log-probs and entropy of the completion tokens on the grid [B, width], float32, 0 beyond a completion."""
        ...


class Values(Protocol):
    """Returns expected returns."""

    def values(self, samples: Sequence[Sample], width: int) -> Tensor:
        """The value before each completion token on the grid [B, width], float32, 0 beyond a completion."""
        ...


@dataclass(frozen=True)
class Update:
    """The result of one optimizer step."""

    applied: bool  # False: a gradient was not finite, the weights are as before
    grad_norm: float  # before clipping


class Writable(Protocol):
    """A file open for writing."""

    def write(self, data: bytes | memoryview, /) -> int: ...


class FileFactory(Protocol):
    """Creates the files of a checkpoint."""

    def create(self, name: str) -> AbstractContextManager[Writable]: ...


class Learner(Protocol):
    """Turns losses into new weights."""

    def enable_grad(self) -> AbstractContextManager[None]:
        """Inside it outputs keep what a gradient needs."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds d loss / d weights, summed over ranks, to the gradient."""
        ...

    def idle(self) -> None:
        """A pass that adds nothing, on ranks with fewer micro-batches than others."""
        ...

    def try_samples(self, samples: Sequence[Sample]) -> None:
        """A forward and a backward pass with zero weights, which changes nothing, even where memory runs out in it."""
        ...

    def reserve_update(self) -> Sequence[Tensor]:
        """Memory as large as what an update holds beside the passes, and has not been allocated yet; for whoever tries passes."""
        ...

    def step(self, lr: float) -> Update: ...

    def save(self, files: FileFactory) -> None:
        """Weights and optimizer state by parameter name, independent of the number of ranks and of how they are sharded."""
        ...

    def load(self, folder: Path) -> None: ...


class Source(Protocol):
    """Where weights come from."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the checkpoint by its name in the files, tied ones and buffers too, on every rank in the same order."""
        ...

    def module_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The same tensors as transformers' model has them, which may hold several in one, by its names."""
        ...


class Offloadable(Protocol):
    """Can leave the accelerator's memory and come back."""

    def offload(self) -> None: ...

    def reload(self) -> None: ...


class Policy(Scores, Learner, Source, Offloadable, Protocol):
    """The model being trained."""

    def export(self, folder: Path, adapter: bool) -> None:
        """A Hugging Face folder without tokenizer; `adapter`: only what was trained, as a peft folder."""
        ...


class Critic(Values, Learner, Offloadable, Protocol):
    """The model that learns the values."""


class Shards(Protocol):
    """How a backend holds tensors: whole, or a part on each rank."""

    def gather(self, tensors: Sequence[Any]) -> AbstractContextManager[Any]:
        """Inside it the tensors are whole on every rank; a collective call."""
        ...

    def is_sharded(self, tensor: Any) -> bool: ...

    def count_elements(self, tensor: Any) -> int:
        """Elements of the whole tensor."""
        ...


class Backend(Shards, Offloadable, Protocol):
    """Trains one module over all ranks: gradients, optimizer state, and where they are held."""

    device: torch.device

    @property
    def module(self) -> nn.Module:
        """The module to call in training and scoring."""
        ...

    def backward(self, loss: Tensor) -> None:
        """As of Learner."""
        ...

    def try_backward(self, forward: Callable[[nn.Module], Tensor]) -> None:
        """forward(module) and its backward pass, without any effect, even where memory runs out."""
        ...

    def reserve_update(self) -> Sequence[Tensor]:
        """As of Learner."""
        ...

    def step(self, lr: float) -> Update: ...

    def save(self, files: FileFactory, name: str) -> None:
        """Weights and optimizer state into the files `name`.* of a checkpoint."""
        ...

    def load(self, folder: Path, name: str, idle: Callable[[], None]) -> None:
        """Reads what `save` wrote; `idle` is a pass that adds nothing, for a backend that needs one to create its state."""
        ...


class BackendFactory(Protocol):
    """Builds the backend of a module."""

    device: torch.device

    def shard_on_load(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Inside it a model is loaded such that no rank ever holds all of it, where the backend shards weights."""
        ...

    def build(self, module: nn.Module, dtype: torch.dtype) -> Backend: ...


def make_sample(request: Request, tokens: list[int], logprobs: list[float], stop: Stop, version: int | None) -> Sample:
    """A sample from plain lists, after what the request had; its text is filled in by who has the tokenizer, so it is empty here."""
    own = Sample(
        key=request.key,
        prompt=request.tokens,
        tokens=torch.tensor(tokens, dtype=torch.int64),
        mask=torch.ones(len(tokens), dtype=torch.bool),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        versions=torch.full((len(tokens),), -1 if version is None else version, dtype=torch.int32),
        stop=stop,
        text="",
    )
    begun = request.begun
    if begun is None:
        return own
    return replace(
        own,
        tokens=torch.cat([begun.tokens, own.tokens]),
        mask=torch.cat([begun.mask, own.mask]),
        rollout_logprobs=torch.cat([begun.rollout_logprobs, own.rollout_logprobs]),
        versions=torch.cat([begun.versions, own.versions]),
    )


def check_names(expected: Mapping[str, Any] | Sequence[str], received: Mapping[str, Any]) -> None:
    """Raises RunFailed where a load lacks a tensor of the model, or has one that the model does not have."""
    known = set(expected)
    missing = [name for name in expected if name not in received]
    unknown = [name for name in received if name not in known]
    if missing or unknown:
        raise RunFailed(
            "the weights sent to the rollout engine are not the model's: "
            + "; ".join(
                f"{word} {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                for word, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )
