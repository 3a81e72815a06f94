"""Samples that are continued have the distribution of those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.engines.hf_generate import HFEngine
from rlkit.seeds import sample_seed
from rlkit.types import Key, Request, Sample, Sampling, Stop


@pytest.mark.nightly(part="matrices")
def test_under_frozen_weights_a_continued_sample_has_the_distribution_of_a_fresh_one(tiny_model: Path) -> None:
    """5000 completions of three tokens, at once or with a stop after each token: of all pairs of the last two, in 64 classes."""
    hf = HFEngine(str(tiny_model), torch.float32, device=torch.device("cpu"), eos=frozenset({2}), pad=0, offline=True)
    hf.load(iter({name: tensor.clone() for name, tensor in hf.model.state_dict().items()}.items()), 0)
    sampling, count = Sampling(temperature=0.7, max_tokens=3), 5000
    fresh = asked_alike(hf, [Request(Key(i, 3, 0), (40, 41, 42), sampling, sample_seed(1, Key(i, 3, 0))) for i in range(count)])
    continued: dict[Key, Sample] = {}
    for tokens in (1, 2, 3):
        requests = []
        for i in range(count):
            key = Key(i, 4, 0)
            had = continued.get(key)
            if had is None or had.stop is not Stop.EOS:
                seed, limit = sample_seed(1, key, tokens - 1), replace(sampling, max_tokens=tokens)
                requests.append(Request(key, (40, 41, 42), limit, seed, had))
        continued |= {s.key: s for s in asked_alike(hf, requests)}
    table = [[0] * 64, [0] * 64]
    for row, samples in zip(table, (fresh, list(continued.values())), strict=True):
        for sample in samples:
            first, second = [0, 0, *sample.tokens.tolist()][-2:]
            row[8 * (first % 8) + second % 8] += 1
    assert sum(table[0]) == sum(table[1]) == count
    assert sum((a - b) ** 2 / (a + b) for a, b in zip(*table, strict=True) if a + b) < 92.0  # of chi-square with 63 degrees: p > 0.01


def asked_alike(engine: Any, requests: list[Request]) -> list[Sample]:
    for request in requests:
        engine.add(request)
    samples = []
    while engine.pending:
        samples += engine.advance()
    return samples
