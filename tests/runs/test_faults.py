"""Faults inside a run stop it, in words, before they can do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run

KEPT = "in the sync of version 2: 1 of 25 tensors differ: model.layers.1.self_attn.o_proj.weight;"
FAULTS = [
    ("keeps_old", KEPT, [0, 1, 2]),
    pytest.param("leaves_out", "missing lm_head.weight", [0, 1], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "words", "steps"), FAULTS)
def test_a_sync_with_a_fault_stops_the_run(fault: str, words: str, steps: list[int], small_vllm: list[str], tmp_path: Path) -> None:
    """At a learning rate so small that a tensor which is a step old moves no log-prob by more than rounding."""
    folder = tmp_path / "run"
    ended = run(fault, *small_vllm, "optim.lr=1e-6", "eval.every=0", f"output_dir={folder}", program="faulty.py")
    assert ended.code == 1, ended.out + ended.err
    assert words in ended.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == steps  # nothing was learned from what the faulty engine would have sampled
    assert not (folder / "model").exists()


ON_POLICY = ["algorithm.kl_coef=0.01", "algorithm.kl_in=reward", "algorithm.kl_estimator=k1", "eval.every=0"]


@pytest.mark.slow
def test_the_first_step_is_on_policy_and_with_dropout_it_is_not(small: list[str], tmp_path: Path) -> None:
    """Old log-probs are computed (the KL is in the reward) in the micro-batches that learn: the ratio is exactly 1, the KL 0."""
    words = [*small, *ON_POLICY, "steps=1"]
    ended = run("none", *words, f"output_dir={tmp_path / 'on'}", program="faulty.py")
    assert ended.code == 0, ended.out + ended.err
    row = json.loads((tmp_path / "on" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["ratio/max_deviation"] == 0.0 and abs(row["kl"]) <= 1e-8
    ended = run("dropout", *words, f"output_dir={tmp_path / 'stopped'}", program="faulty.py")
    assert ended.code == 1 and "does not sample from the policy" in ended.err
    ended = run("dropout", *words, "engine.mismatch_limit=100.0", f"output_dir={tmp_path / 'off'}", program="faulty.py")
    assert ended.code == 0, ended.out + ended.err
    row = json.loads((tmp_path / "off" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["ratio/max_deviation"] > 1e-3 and abs(row["kl"]) > 1e-4


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_skipped_and_stop_the_run_after_several(small: list[str], tmp_path: Path) -> None:
    words = ["not_finite", *small, "steps=5", "eval.every=0"]
    ended = run(*words, "engine.max_skipped_updates=4", f"output_dir={tmp_path / 'on'}", program="faulty.py")
    assert ended.code == 0, ended.out + ended.err
    rows = [json.loads(line) for line in (tmp_path / "on" / "metrics.jsonl").read_text().splitlines()]
    assert [row["updates_skipped"] for row in rows[1:]] == [0.0, 1.0, 1.0, 1.0, 0.0]
    ended = run(*words, "engine.max_skipped_updates=3", f"output_dir={tmp_path / 'off'}", program="faulty.py")
    assert ended.code == 1
    assert "the gradients of 3 updates in a row were not finite" in ended.err
