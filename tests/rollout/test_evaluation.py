"""What an evaluation says of graded samples: a grade that failed is no wrong answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rlkit.rewarding.outcome import RAW_REWARD
from rlkit.rollout.evaluation import Evaluation
from rlkit.types import Group, Key, Sample, Sampling, ScoredSample, Stop
from tests.algorithms.tiny import Ranks, together


@dataclass
class StubSampler:
    """Hands out what was graded before."""

    grades: list[list[float | None]]

    def sample_groups(self, prompts: list[tuple[int, int]], samples: int, sampling: Sampling) -> list[Group]:
        return [Group(number, tuple(scored(row, n, g) for n, g in enumerate(self.grades[row]))) for number, row in prompts]


def scored(row: int, n: int, grade: float | None) -> ScoredSample:
    """Rewards are normalised: 0 in the mean; before that they were the grades."""
    tokens = torch.arange(2 + n)
    sample = Sample(Key(row, 0, n), (7,), tokens, tokens >= 0, tokens.float(), tokens.int(), Stop.LENGTH if n else Stop.EOS, "")
    return ScoredSample(sample, None if grade is None else 0.0, {"accuracy": grade}, {} if grade is None else {RAW_REWARD: grade})


def evaluated(grades: list[list[float | None]], world: int) -> dict[str, float]:
    def work(ranks: Ranks) -> Any:
        asked: Any = list(range(len(grades)))
        seen = Evaluation(StubSampler(grades), asked, ranks, len(grades[0]), Sampling(), "accuracy").run()  # type: ignore[arg-type]
        assert seen is not None
        return seen[0]

    rows = together(world, work)
    assert all(row == rows[0] for row in rows)
    return rows[0]


@pytest.mark.parametrize("world", [1, 3])
def test_of_several_samples(world: int) -> None:
    """Problems: passed, not passed, without any grade, and two that are not known for sure because a grade failed."""
    row = evaluated([[1.0, 0.0], [0.0, 0.25], [None, None], [None, 0.0], [1.0, None]], world)
    assert row == {
        "eval/accuracy": 2 / 6,
        "eval/accuracy_low": pytest.approx(0.0615, abs=1e-4),  # Wilson's interval of 1 of 3
        "eval/accuracy_high": pytest.approx(0.7923, abs=1e-4),
        "eval/reward": 2.25 / 6,
        "eval/pass@2": 1 / 2,
        "eval/completions/mean_length": 2.5,
        "eval/completions/clipped_ratio": 0.5,
    }


def test_greedily() -> None:
    row = evaluated([[1.0], [None], [0.0], [0.5]], 1)
    assert (row["eval/accuracy"], row["eval/reward"]) == (2 / 3, 0.5) and "eval/pass@1" not in row
