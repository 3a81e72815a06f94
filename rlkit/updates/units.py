"""Rows of the data as units: what is never split over micro-batches or ranks. A pair, a rated completion, a demonstration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlkit.algorithms.offline import Kind
from rlkit.data.offline_rows import Demonstration, Pair, RatedCompletion
from rlkit.ops.batching import count_tokens, measure_sample
from rlkit.profiling.roofline import PromptLengths
from rlkit.types import Key, Sample, Stop


@dataclass(frozen=True, eq=False)
class Unit:
    """Completions that are learned from together."""

    samples: tuple[Sample, ...]  # of a pair the chosen one first
    desirable: bool = True

    @property
    def tokens(self) -> int:
        """With its prompt once."""
        return count_tokens([measure_sample(s) for s in self.samples])

    @property
    def lengths(self) -> PromptLengths:
        return len(self.samples[0].prompt), [len(s.tokens) for s in self.samples]


def build_sample(row: int, draw: int, index: int, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Sample:
    """A completion of the data in the form in which engines take one; no weights of the run sampled it (version -1)."""
    tokens = torch.tensor(completion, dtype=torch.int64)
    ones, zeros = torch.ones(len(tokens), dtype=torch.bool), torch.zeros(len(tokens))
    return Sample(Key(row, draw, index), prompt, tokens, ones, zeros, zeros.int() - 1, Stop.EOS, "")


def unit_from_pair(item: Pair) -> Unit:
    both = enumerate((item.chosen, item.rejected))
    return Unit(tuple(build_sample(item.row, item.draw, i, item.prompt, completion) for i, completion in both))


def unit_from_rated(item: RatedCompletion) -> Unit:
    return Unit((build_sample(item.row, item.draw, 0, item.prompt, item.completion),), item.desirable)


def unit_from_demonstration(item: Demonstration) -> Unit:
    return Unit((build_sample(item.row, item.draw, 0, item.prompt, item.completion),))


UNITS: dict[Kind, Callable[[Any], Unit]] = {
    "pairs": unit_from_pair,
    "rated": unit_from_rated,
    "demonstrations": unit_from_demonstration,
}
