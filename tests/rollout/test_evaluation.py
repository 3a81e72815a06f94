"""What an evaluation says of graded samples: a grade that failed is no wrong answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.metrics import Mean, wilson_interval
from rlkit.rewarding.outcome import RAW_REWARD
from rlkit.rollout.evaluation import (
    Evaluation,
    bootstrap_interval,
    describe_few,
    describe_shares,
    estimate_pass,
    grade_majority,
    read_vote,
)
from rlkit.types import Group, Key, Sample, Sampling, ScoredSample, Stop
from tests.algorithms.tiny import Ranks, together


@dataclass
class StubSampler:
    """Hands out what was graded before."""

    grades: list[list[float | None]]

    texts: tuple[str, ...] = ("\\boxed{4}", "\\boxed{5}", "\\boxed{5}", "so")

    def sample_groups(self, prompts: list[tuple[int, int]], samples: int, sampling: Sampling, graders: Any) -> list[Group]:
        assert graders is None
        return [Group(number, tuple(scored(row, n, g, self.texts[n]) for n, g in enumerate(self.grades[row]))) for number, row in prompts]


def scored(row: int, n: int, grade: float | None, text: str) -> ScoredSample:
    """Rewards are normalised: 0 in the mean; before that they were the grades."""
    tokens = torch.arange(2 + n)
    sample = Sample(Key(row, 0, n), (7,), tokens, tokens >= 0, tokens.float(), tokens.int(), Stop.LENGTH if n else Stop.EOS, text)
    return ScoredSample(sample, None if grade is None else 0.0, {"accuracy": grade}, {} if grade is None else {RAW_REWARD: grade})


def evaluated(grades: list[list[float | None]], world: int, pass_counts: tuple[int, ...] = (), name: str = "") -> dict[str, float]:
    def work(ranks: Ranks) -> Any:
        asked: Any = list(range(len(grades)))
        evaluation = Evaluation(
            StubSampler(grades),  # type: ignore[arg-type]
            asked,
            ranks,  # type: ignore[arg-type]
            len(grades[0]),
            Sampling(),
            "accuracy",
            name,
            pass_counts=pass_counts,
        )
        seen = evaluation.run()
        assert seen is not None
        return seen[0]

    rows = together(world, work)
    assert all(row == rows[0] for row in rows)
    return rows[0]


@pytest.mark.parametrize("world", [1, 3])
def test_of_several_samples(world: int) -> None:
    """Problems: passed, not passed, without any grade, and two that are not known for sure because a grade failed."""
    row = evaluated([[1.0, 0.0], [0.0, 0.25], [None, None], [None, 0.0], [1.0, None]], world, (2,))
    ends = {name: row.pop(name) for name in list(row) if name.endswith(("_low", "_high"))}
    assert row == {
        "eval/accuracy": 2 / 6,
        "eval/reward": 2.25 / 6,
        "eval/pass@2": 1 / 2,
        "eval/maj@2": 1 / 4,  # a tie between a right and a wrong answer, and one between two wrong ones
        "eval/completions/mean_length": 2.5,
        "eval/completions/clipped_ratio": 0.5,
    }
    assert set(ends) == {f"eval/{name}_{end}" for name in ("accuracy", "pass@2", "maj@2") for end in ("low", "high")}
    assert all(ends[f"eval/{name}_low"] <= row[f"eval/{name}"] <= ends[f"eval/{name}_high"] for name in ("accuracy", "pass@2", "maj@2"))


def test_greedily() -> None:
    row = evaluated([[1.0], [None], [0.0], [0.5]], 1)
    assert (row["eval/accuracy"], row["eval/reward"]) == (2 / 3, 0.5) and "eval/pass@1" not in row


def test_numbers_are_equal_to_the_bit_on_one_and_two_ranks() -> None:
    draw = random.Random(5)
    grades: list[list[float | None]] = [[draw.choice([0.0, 1.0, 1.0, None]) for _ in range(4)] for _ in range(61)]
    alone, both = evaluated(grades, 1, (1, 2, 4), "hard"), evaluated(grades, 2, (1, 2, 4), "hard")
    assert alone == both and len(alone) == 3 * (1 + 3 + 1) + 3
    assert all(name.startswith("eval/hard/") for name in alone)
    assert alone["eval/hard/pass@1"] < alone["eval/hard/pass@2"] < alone["eval/hard/pass@4"]


def test_pass_at_k_is_what_enumeration_gives() -> None:
    """The share of all ways to take k of n samples, of which c are right, with a right one among them."""
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                ways = [any(one < c for one in taken) for taken in combinations(range(n), k)]
                assert estimate_pass(n, c, k) == pytest.approx(sum(ways) / len(ways), abs=1e-12)
    assert estimate_pass(5000, 1, 2500) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("grades", "answers", "right"),
    [
        ([True, False, True], ["4", "5", "4"], 1.0),
        ([True, False, False], ["4", "5", "5"], 0.0),
        ([True, False], ["4", "5"], 0.5),
        ([False, False, True], [None, None, "4"], 1.0),  # who gives no answer does not vote
        ([False, False], [None, None], 0.0),
    ],
)
def test_the_majority_of_the_final_answers(grades: list[bool], answers: list[str | None], right: float) -> None:
    assert grade_majority(grades, answers) == right


def test_answers_are_counted_without_spaces_and_case() -> None:
    assert read_vote(r"so \boxed{ X = 4 }") == read_vote(r"it is \boxed{x=4}") == "x=4"


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_the_intervals_cover_what_they_promise(p: float) -> None:
    """Of 2,000 draws: Wilson's for 200 problems, and the bootstrap's for 200 problems of 8 samples that depend on each other."""
    draw = np.random.default_rng(1)
    shares = draw.binomial(200, p, size=2000) / 200
    found = [wilson_interval(Mean(200 * share, 200.0)) for share in shares]
    assert 0.93 <= np.mean([low <= p <= high for low, high in found]) <= 0.97
    difficulty = draw.beta(2 * p, 2 * (1 - p), size=(2000, 200))  # mean p, widely spread over problems
    right = draw.binomial(8, difficulty)
    found = [bootstrap_interval([Mean(float(c), 8.0) for c in row]) for row in right]
    assert 0.93 <= np.mean([low <= p <= high for low, high in found]) <= 0.97


def test_equal_problems_leave_an_interval() -> None:
    """Resampling problems that are all right shows no spread; ten of them do not prove that every other one is."""
    found = describe_shares("pass@4", [Mean(1.0, 1.0)] * 10)
    assert found == {"pass@4": 1.0, "pass@4_low": pytest.approx(0.7224672), "pass@4_high": pytest.approx(1.0)}
    assert describe_shares("pass@4", [])["pass@4_low"] == 0.0


def test_a_small_set_is_warned_of() -> None:
    assert describe_few("eval.sets.aime", 50) is None
    assert "eval.sets.aime has 30 problems: with fewer than 50" in str(describe_few("eval.sets.aime", 30))
