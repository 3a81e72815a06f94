"""Every online algorithm on the real engines: what it needs is computed, what it does not need is not, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["rloo_math", "remax_math", "reinforce_pp_math", "reinforce_pp_baseline_math", "ppo_math"])
def test_the_built_in_task_is_learned(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(f"recipe={recipe}", f"output_dir={folder}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((folder / "summary.json").read_text())
    print(f"{recipe}: {summary}")
    assert 0.25 <= summary["accuracy_before"] <= 0.45
    assert summary["accuracy_after"] >= 0.90


@pytest.mark.slow
def test_ppo_trains_a_critic_that_is_resumed(small: list[str], tmp_path: Path) -> None:
    words = [
        *small,
        "algorithm=ppo",
        "algorithm.kl_coef=0.01",
        "algorithm.critic_warmup_steps=1",
        "steps=3",
        "eval.every=0",
        "checkpoint.every=1",
    ]
    ended = run(*words, f"output_dir={tmp_path / 'whole'}")
    assert ended.code == 0, ended.out + ended.err
    first, second, third = rows(tmp_path / "whole")[1:]
    assert "grad_norm" not in first  # the policy waits for its critic
    assert first["critic/grad_norm"] > 0 and second["grad_norm"] > 0
    assert first["critic/squared_error"] > third["critic/squared_error"] > 0  # it learns to foresee the reward
    assert first["kl"] < 1e-8  # the policy is its reference still
    stopped = run("SIGTERM", "rollout", "3", *words, f"output_dir={tmp_path / 'cut'}", program="struck.py")
    assert stopped.code == 75, stopped.err
    ended = run(*words, f"output_dir={tmp_path / 'cut'}")
    assert ended.code == 0, ended.out + ended.err
    again = rows(tmp_path / "cut")[-1]
    for name in ("reward", "critic/squared_error", "grad_norm", "loss"):
        assert again[name] == third[name]


@pytest.mark.slow
def test_remax_takes_the_greedy_completion_for_its_baseline(small: list[str], tmp_path: Path) -> None:
    ended = run(*small, "algorithm=remax", "samples_per_prompt=1", "steps=1", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    trained = [s for s in samples if s["split"] == "train"]
    assert len(trained) == 4  # the greedy ones are judged, not learned from
    baselines = {round(s["reward"] - s["advantage"], 5) for s in trained}
    assert all(0 <= b <= 1 for b in baselines)
    assert any(abs(s["advantage"]) > 1e-3 for s in trained)
