"""Every online algorithm on the real engines: what it needs is computed, what it does not need is not, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, run
from tests.repeatable import select_repeatable

SIX = ["grpo_math", "rloo_math", "remax_math", "reinforce_pp_math", "reinforce_pp_baseline_math", "ppo_math"]

NIGHTLY = pytest.mark.nightly(part="trainings")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
@NIGHTLY
@pytest.mark.parametrize("recipe", [*SIX[1:], "dapo_math"])
def test_the_built_in_task_is_learned(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(f"recipe={recipe}", "eval.every=0", f"output_dir={folder}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((folder / "summary.json").read_text())
    print(f"{recipe}: {summary}")
    assert 0.25 <= summary["accuracy_before"] <= 0.45
    assert summary["accuracy_after"] >= 0.90


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [pytest.param("remax_math", marks=NIGHTLY), "dapo_math"])
def test_in_eight_steps_the_reward_rises(recipe: str, tmp_path: Path) -> None:
    """The two that sample as no other does: a greedy completion for each prompt, and groups until enough have a signal."""
    quick = ["steps=8", "optim.lr=4e-4", "optim.warmup_steps=2", "optim.schedule=constant", "data.test=null", "checkpoint.every=0"]
    ended = run(f"recipe={recipe}", *quick, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    rewards = [row["reward"] for row in rows(tmp_path / "run") if "reward" in row]
    print(f"{recipe}: {rewards}")
    assert len(rewards) == 8 and sum(rewards[6:]) / 2 > sum(rewards[:2]) / 2 + 0.1


@pytest.mark.timeout(600)
@NIGHTLY
@pytest.mark.parametrize("recipe", SIX)
def test_with_the_reward_negated_the_task_is_unlearned(recipe: str, tmp_path: Path) -> None:
    steps = 14 if recipe == "ppo_math" else 8  # PPO's critic learns first
    quick = [f"steps={steps}", "optim.lr=4e-4", "optim.warmup_steps=2", "eval.every=0"]
    ended = run(f"recipe={recipe}", "rewards.accuracy.weight=-1", *quick, f"output_dir={tmp_path / 'run'}", timeout=500)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print(f"{recipe}, negated: {summary}")
    assert summary["accuracy_after"] <= summary["accuracy_before"] - 0.15


@pytest.mark.slow
def test_ppo_trains_a_critic_that_is_resumed(small_vllm: list[str], tmp_path: Path) -> None:
    words = [
        *small_vllm,
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
    assert all(row[f"floor/{phase}"] >= 1 for row in (first, second, third) for phase in ("rollout", "observe", "update"))
    assert first["throughput/mfu"] == 0 < second["throughput/mfu"]
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


@pytest.mark.slow
def test_dynamic_sampling_survives_a_kill_with_its_surplus(small: list[str], tmp_path: Path) -> None:
    """A reward that most groups agree on: groups are dropped and refilled, surplus crosses the steps and the checkpoint."""
    (tmp_path / "rare.py").write_text("def rare(completion): return float(ord((completion + '!')[0]) % 3 == 0)\n")
    words = [
        *small,
        f"rewards.accuracy.path={tmp_path / 'rare.py'}:rare",
        "algorithm.dynamic_sampling=true",
        "steps=4",
        "eval.every=0",
        "checkpoint.every=1",
    ]
    ended = run(*words, f"output_dir={tmp_path / 'whole'}")
    assert ended.code == 0, ended.out + ended.err
    whole = rows(tmp_path / "whole")[1:]
    assert sum(row["groups/left_out"] for row in whole) > 0 and sum(row["groups/refills"] for row in whole) > 0
    assert any(row["groups/surplus"] for row in whole[:3])
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()]
    for row in whole:
        said = [s for s in samples if s["split"] == "train" and s["step"] == row["step"]]
        learned = [s for s in said if s["advantage"] is not None]
        assert (len(learned), len(said) - len(learned)) == (4 * row["groups/kept"], 4 * row["groups/left_out"])
        assert row["frac_reward_zero_std"] == row["groups/left_out"] / (row["groups/kept"] + row["groups/left_out"])
        assert row["reward"] == pytest.approx(sum(s["reward"] for s in said) / len(said))
        assert all(s["reward"] == said_of[0]["reward"] for said_of in by_prompt(said, learned) for s in said_of)
        old = {s["version"] for s in learned} - {row["step"] - 1}
        assert old <= {row["step"] - 2}  # surplus waits for one step at most
    carried = next(row["step"] for row in whole if row["groups/surplus"])
    cut = run("SIGKILL", "update", str(carried + 1), *words, f"output_dir={tmp_path / 'cut'}", program="struck.py")
    assert cut.code == -9
    ended = run(*words, f"output_dir={tmp_path / 'cut'}")
    assert ended.code == 0, ended.out + ended.err
    assert [select_repeatable(row) for row in rows(tmp_path / "cut")] == [select_repeatable(row) for row in rows(tmp_path / "whole")]


def by_prompt(said: list[dict[str, Any]], learned: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The groups that were not learned from."""
    kept = {tuple(s["key"][:2]) for s in learned}
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for s in said:
        if tuple(s["key"][:2]) not in kept:
            groups.setdefault(tuple(s["key"][:2]), []).append(s)
    return list(groups.values())


@pytest.mark.slow
def test_a_step_without_any_signal_learns_nothing_and_says_so(small: list[str], tiny_model: Path, tmp_path: Path) -> None:
    constant = f"rewards.accuracy.path={ROOT / 'tests' / 'programs' / 'toy_reward.py'}:constant"
    words = [*small, constant, "algorithm.dynamic_sampling=true", "algorithm.max_refills=1", "steps=2", "eval.every=0"]
    ended = run(*words, "updates_per_step=2", f"output_dir={tmp_path / 'run'}", ranks=2)
    assert ended.code == 0, ended.out + ended.err
    assert "step 1: 0 of 4 groups have a signal after 1 refills (algorithm.max_refills); it learns nothing" in ended.out
    assert [row["updates_without_signal"] for row in rows(tmp_path / "run")[1:]] == [2.0, 2.0]
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
