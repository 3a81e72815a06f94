"""Runs whose steps leave begun samples to the next one: a killed run repeats an undisturbed one, and the task is learned."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run
from tests.repeatable import select_repeatable


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def samples(folder: Path) -> Iterator[dict[str, Any]]:
    for line in (folder / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "train":
            yield row


WORDS = [
    "rollout.over_ask=1.5",
    "rollout.max_lag=2",
    "sampling.temperature=1.5",
    "max_completion_tokens=48",
    "eval.every=0",
    "optim.lr=1e-3",
]


def build_words(small: list[str], folder: Path) -> list[str]:
    return [*small, *WORDS, "tokens_per_micro_batch=1024", "checkpoint.every=1", f"output_dir={folder}"]


def test_a_killed_run_goes_on_with_its_begun_samples(small: list[str], tmp_path: Path) -> None:
    """On one process; where lengths differ each step leaves some, and none is learned from twice."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ended = run(*build_words(small, whole))
    assert ended.code == 0, ended.out + ended.err
    seen = rows(whole)[1:]
    assert all(row["carried/groups"] == 2 and row["carried/tokens"] > 0 for row in seen[:3])
    assert all(0 <= row["lag/max"] <= 2 for row in seen) and any(0 < row["lag/mean"] < row["lag/max"] for row in seen)
    assert all(row["sampling/compared_tokens"] > 0 and row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in seen)
    keys = [tuple(row["key"]) for row in samples(whole)]
    assert len(keys) == len(set(keys)) == 4 * 4 * 4
    assert run("SIGKILL", "update", "3", *build_words(small, cut), program="struck.py").code == -9
    ended = run(*build_words(small, cut))
    assert ended.code == 0, ended.out + ended.err
    assert [select_repeatable(row) for row in rows(cut)] == [select_repeatable(row) for row in rows(whole)]


@pytest.mark.timeout(900)
@pytest.mark.nightly(part="kills")
def test_no_begun_sample_is_lost_in_20_kills(small: list[str], tmp_path: Path) -> None:
    """Every second kill is in the second step of a start, so that ten steps are made in all."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["steps=12", "optim.lr=1e-4"]
    ended = run(*build_words(small, whole), *words)
    assert ended.code == 0, ended.out + ended.err
    draw = random.Random(0)
    for kill in range(20):
        struck = ["SIGKILL", draw.choice(["rollout", "observe", "update"]), str(1 + kill % 2)]
        assert run(*struck, *build_words(small, cut), *words, program="struck.py").code == -9
    ended = run(*build_words(small, cut), *words)
    assert ended.code == 0, ended.out + ended.err
    assert [select_repeatable(row) for row in rows(cut)] == [select_repeatable(row) for row in rows(whole)]
    keys = [tuple(row["key"]) for row in samples(whole)]
    assert len(keys) == len(set(keys)) == 12 * 4 * 4


@pytest.mark.timeout(900)
@pytest.mark.nightly(part="trainings")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_built_in_task_is_learned_with_carried_samples(seed: int, tmp_path: Path) -> None:
    words = ["recipe=grpo_math", "rollout=carry_over", "rollout.over_ask=1.5", f"seed={seed}", "eval.every=0"]
    ended = run(*words, f"output_dir={tmp_path / 'run'}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print(f"seed {seed}: {summary}")
    assert summary["accuracy_after"] >= 0.97
