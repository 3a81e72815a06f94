"""What the benchmark compares, and that it compares nothing else."""

from __future__ import annotations

import statistics

import pytest

from tests.bench import grpo_step


def test_the_lengths_are_those_that_the_benchmark_is_of() -> None:
    ragged, short = grpo_step.lengths("ragged"), grpo_step.lengths("short")
    assert len(ragged) == 16 * 16 and max(ragged) == 256 and 105 < statistics.mean(ragged) < 125
    assert len(short) == 64 * 16 and (min(short), max(short)) == (1, 16)
    assert ragged == grpo_step.lengths("ragged")


def test_sides_that_do_not_do_the_same_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = (
        {"seconds": s, "tokens": 100, "phases": {"rollout": s - 0.5, "resume": 0.1}, "floors": {"rollout": 2.0 * s - 1.0}}
        for s in (2.0, 4.0)
    )
    ours = [fast, slow]
    theirs = [{"seconds": 9.0, "tokens": 100}]
    assert grpo_step.told("ragged", {"rlkit": ours, "trl": theirs}) == 0
    said = capsys.readouterr().out
    assert (
        "100 completion tokens a step" in said
        and "3.000 s   rollout 2.500 (5.0x its least), resume 0.100\n" in said
        and "trl / rlkit = 3.00" in said
    )
    assert grpo_step.told("ragged", {"rlkit": ours, "trl": [{"seconds": 9.0, "tokens": 99}]}) == 1
    assert "not the same work" in capsys.readouterr().out
