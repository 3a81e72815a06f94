"""Faults inside a run stop it, in words, before they can do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run

FAULTS = [
    ("leaves_out", ["missing lm_head.weight"]),
    pytest.param("keeps_old", ["does not sample from the policy", "model.layers.0.mlp.up_proj.weight"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_a_sync_with_a_fault_stops_the_run(fault: str, words: list[str], small_vllm: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(fault, *small_vllm, "optim.lr=0.05", f"output_dir={folder}", program="faulty.py")
    assert ended.code == 1, ended.out + ended.err
    for word in words:
        assert word in ended.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]  # nothing was learned from what the faulty engine sampled
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
