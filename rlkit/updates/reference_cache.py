"""What the starting model says of the completions of the data: one number each, computed once, kept in the cache.

The policy says it before its first update, when it is its own reference: there is never a second model, under any ZeRO stage.

A file of the cache is found by a hash of all that its numbers depend on: every weight of the model, the dtype, the token ids of all
completions, how they are cut into micro-batches on how many ranks, the versions of rlkit, torch and transformers. Change one of them, and
the numbers are computed anew. Old files are harmless; `rm -r $RLKIT_CACHE/reference` removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

import rlkit
from rlkit.engines.base import Scores, Source
from rlkit.ops.batching import balance_samples, measure_sample
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sample
from rlkit.updates.online_update import lockstep_micro_batches


class Initial(Scores, Source, Protocol):
    """A policy that has not learnt yet."""


class Reference:
    """Log-probs of whole completions."""

    def __init__(self, names: Sequence[bytes], numbers: Sequence[float]) -> None:
        self._said = dict(zip(names, numbers, strict=True))

    def of(self, samples: Sequence[Sample]) -> Tensor:
        """[B] float64."""
        return torch.tensor([self._said[name_of(s)] for s in samples], dtype=torch.float64)


def name_of(sample: Sample) -> bytes:
    """A hash of the token ids of prompt and completion."""
    digest = blake2b(np.array([len(sample.prompt), *sample.prompt], dtype=np.int64).tobytes(), digest_size=16)
    digest.update(sample.tokens.numpy().tobytes())
    return digest.digest()


def load_or_compute(policy: Initial, asked: Iterable[Sample], ranks: Ranks, budget: int, cache: Path) -> tuple[Reference, int]:
    """The reference for these completions, and how many were scored for it now: 0 where the cache has them."""
    samples = {name_of(s): s for s in asked}
    names = sorted(samples)
    file = cache / "reference" / f"{key(policy.weights(), names, (ranks.world, ranks.sp_size), budget)}.npy"
    found = ranks.gather(stored(file, len(names)) if ranks.main else None)[0]
    if found is not None:
        return Reference(names, found.tolist()), 0
    numbers = scored(policy, [samples[name] for name in names], ranks, budget).numpy()
    if ranks.main:
        store(file, numbers)
    return Reference(names, numbers.tolist()), len(names)


def key(weights: Iterator[tuple[str, Tensor]], names: Sequence[bytes], ranks: tuple[int, int], budget: int) -> str:
    """A hash of all that the numbers depend on."""
    versions = (rlkit.__version__, version("torch"), version("transformers"))
    digest = blake2b(repr((versions, ranks, budget, len(names))).encode(), digest_size=16)
    for name in names:
        digest.update(name)
    for name, tensor in weights:  # on every rank: sharded weights are gathered on all
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def scored(policy: Scores, samples: list[Sample], ranks: Ranks, budget: int) -> Tensor:
    """Log-probs of whole completions, each rank's share by the policy as it is now; [N] float64."""
    sizes = [measure_sample(s) for s in samples]
    mine = [i for i, rank in enumerate(balance_samples(sizes, ranks.world)) if rank == ranks.rank]
    numbers = torch.zeros(len(samples), dtype=torch.float64)
    for part in lockstep_micro_batches([sizes[i] for i in mine], budget, ranks):
        chosen = [mine[k] for k in part]
        said, _ = policy.logprobs([samples[i] for i in chosen], max((len(samples[i].tokens) for i in chosen), default=0))
        numbers[chosen] = said.double().sum(-1).cpu()
    return ranks.all_reduce_sum(numbers)


def stored(file: Path, count: int) -> np.ndarray | None:
    """The numbers of a file; None where there is none, or one that cannot be read."""
    try:
        numbers = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return numbers if numbers.shape == (count,) and numbers.dtype == np.float64 else None


def store(file: Path, numbers: np.ndarray) -> None:
    """Writes the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as opened:
        np.save(opened, numbers)
    unfinished.replace(file)
