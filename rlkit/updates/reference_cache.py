"""Log-probs of the data's completions by the model before training: one number each, computed once and cached.

The policy computes them before its first update, when it is its own reference: no second model is loaded, under any ZeRO stage.

The name of a cache file is a hash of all that its numbers depend on: every weight of the model, the dtype, the token ids of all
completions, how they are split into micro-batches on how many ranks, the versions of rlkit, torch and transformers. When one of them
changes, the numbers are computed again. Old files are harmless; `rm -r $RLKIT_CACHE/reference` removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import rlkit
from rlkit.engines.base import Scores, Source
from rlkit.ops.batching import balance_samples, measure_sample
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Sample
from rlkit.updates.optimizer_step import split_in_lockstep

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class InitialPolicy(Scores, Source, Protocol):
    """A policy before its first update."""


class ReferenceLogprobs:
    """Log-probs of whole completions; names: of `hash_sample`."""

    def __init__(self, names: Sequence[bytes], logprobs: Sequence[float]) -> None:
        self._logprobs = dict(zip(names, logprobs, strict=True))

    def look_up(self, samples: Sequence[Sample]) -> Tensor:
        """[B] float64."""
        return torch.tensor([self._logprobs[hash_sample(s)] for s in samples], dtype=torch.float64)


def hash_sample(sample: Sample) -> bytes:
    """A hash of the token ids of prompt and completion."""
    digest = blake2b(np.array([len(sample.prompt), *sample.prompt], dtype=np.int64).tobytes(), digest_size=16)
    digest.update(sample.tokens.numpy().tobytes())
    return digest.digest()


def load_or_compute(
    policy: InitialPolicy, samples: Iterable[Sample], ranks: Ranks, budget: int, cache: Path
) -> tuple[ReferenceLogprobs, int]:
    """The log-probs of these completions, and how many were computed now: 0 where the cache has them."""
    by_name = {hash_sample(s): s for s in samples}
    names = sorted(by_name)
    distinct = rekey_by_prompt([by_name[name] for name in names])
    file = cache / "reference" / f"{hash_inputs(policy.weights(), names, (ranks.world, ranks.sp_size), budget)}.npy"
    cached = ranks.gather(read_numbers(file, len(names)) if ranks.main else None)[0]
    if cached is not None:
        return ReferenceLogprobs(names, cached.tolist()), 0
    numbers = compute_sequence_logprobs(policy, distinct, ranks, budget).numpy()
    if ranks.main:
        write_numbers(file, numbers)
    return ReferenceLogprobs(names, numbers.tolist()), len(names)


def rekey_by_prompt(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with keys that are equal where prompts are: rows of the training and of the held-out data have the same keys."""
    prompts: dict[tuple[int, ...], int] = {}
    return [replace(s, key=Key(prompts.setdefault(s.prompt, len(prompts)), 0, i)) for i, s in enumerate(samples)]


def hash_inputs(weights: Iterator[tuple[str, Tensor]], names: Sequence[bytes], ranks: tuple[int, int], budget: int) -> str:
    """A hash of all that the numbers depend on."""
    versions = (rlkit.__version__, version("torch"), version("transformers"))
    digest = blake2b(repr((versions, ranks, budget, len(names))).encode(), digest_size=16)
    for name in names:
        digest.update(name)
    for weight_name, tensor in weights:  # on every rank: sharded weights are gathered on all
        digest.update(f"{weight_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compute_sequence_logprobs(policy: Scores, samples: list[Sample], ranks: Ranks, budget: int) -> Tensor:
    """Log-probs of whole completions, each rank's share by the policy with its current weights; [N] float64."""
    lengths = [measure_sample(s) for s in samples]
    share = [i for i, rank in enumerate(balance_samples(lengths, ranks.world)) if rank == ranks.rank]
    numbers = torch.zeros(len(samples), dtype=torch.float64)
    for items in split_in_lockstep([lengths[i] for i in share], budget, ranks):
        chosen = [share[k] for k in items]
        logprobs, _ = policy.logprobs([samples[i] for i in chosen], max((len(samples[i].tokens) for i in chosen), default=0))
        numbers[chosen] = logprobs.double().sum(-1).cpu()
    return ranks.all_reduce_sum(numbers)


def read_numbers(file: Path, count: int) -> Numbers | None:
    """The numbers of a file; None where there is none, or one that cannot be read."""
    try:
        numbers = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return numbers if numbers.shape == (count,) and numbers.dtype == np.float64 else None


def write_numbers(file: Path, numbers: Numbers) -> None:
    """Writes the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as stream:
        np.save(stream, numbers)
    unfinished.replace(file)
