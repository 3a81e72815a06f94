"""Distillation on policy in the real update of a small policy: where teacher and policy are one, nothing moves; else the KL falls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlkit.algorithms import State
from rlkit.metrics import metric_values
from rlkit.types import Signals
from rlkit.updates.collate import collate
from rlkit.updates.optimizer_step import UpdateCount
from tests.algorithms.shipped import algorithm
from tests.algorithms.test_grpo import learning
from tests.algorithms.tiny import Policy, Ranks, groups_of, together

ALONE: list[list[float | None]] = [[0.0]] * 6  # one sample a prompt, no rewards


def step(
    ranks: Ranks, teacher_seed: int, rewards: list[list[float | None]], **changes: Any
) -> tuple[Policy, dict[str, float], torch.Tensor]:
    """One update; the policy has the seed 0. Also what was credited, and the advantages."""
    policy = Policy(ranks)
    run = learning(algorithm("opd", **changes), ranks, 1, policy=policy, teacher=Policy(ranks, seed=teacher_seed))
    _, batch = collate(groups_of(rewards)[ranks.rank :: ranks.world], ranks, 1, 0)  # type: ignore[arg-type]
    signals, _ = run.observe(batch)
    credit, _, credited = run.algorithm.compute_advantages(batch, signals, State(), ranks)
    updated, _ = run.update(batch, signals, credit, UpdateCount())
    return policy, metric_values(credited) | metric_values(updated), credit.advantages


@pytest.mark.parametrize("world", [1, 2])
def test_a_teacher_that_is_the_policy_gives_exactly_no_gradient(world: int) -> None:
    for policy, metrics, advantages in together(world, lambda ranks: step(ranks, 0, ALONE)):
        assert metrics["teacher/kl"] == 0.0 and metrics["updates_without_signal"] == 1.0
        assert not advantages.any() and policy.gradients == [] and policy.calls == []


def test_another_teacher_moves_the_policy_without_rewards() -> None:
    ((policy, metrics, advantages),) = together(1, lambda ranks: step(ranks, 1, ALONE))
    assert len(policy.gradients) == 1 and policy.gradients[0].norm() > 1e-3 and advantages.any()
    assert metrics["teacher/kl"] != 0.0 and metrics["updates_without_signal"] == 0.0


def test_a_sample_whose_reward_failed_is_taught_all_the_same() -> None:
    """Of rewards 1 and unknown no baseline is left: the signal of the teacher alone."""
    ((_, _, failed),) = together(1, lambda ranks: step(ranks, 1, [[1.0, None], [None, None]]))
    ((_, _, alone),) = together(1, lambda ranks: step(ranks, 1, [[0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(failed, alone) and alone.any()


@pytest.mark.parametrize("coef", [0.5, 3.0])
def test_the_signal_is_weighed_and_held(coef: float) -> None:
    ((_, free, whole),) = together(1, lambda ranks: step(ranks, 1, ALONE, teacher_coef=coef, clip_signal=100.0))
    ((_, tight, held),) = together(1, lambda ranks: step(ranks, 1, ALONE, teacher_coef=coef, clip_signal=0.5))
    assert torch.allclose(held, whole.clamp(-0.5 * coef, 0.5 * coef)) and whole.abs().max() > 0.5 * coef
    assert free["teacher/clip_ratio"] == 0.0 < tight["teacher/clip_ratio"] < 1.0 and free["teacher/kl"] == tight["teacher/kl"]


def test_what_it_needs() -> None:
    needs = algorithm("opd").needs(1)
    assert needs.teacher and needs.old_logprobs and not needs.rewards and not needs.reference
    assert algorithm("opd", kl_coef=0.1).needs(1).reference and algorithm("opd").min_samples_per_prompt == 1
    assert all(
        algorithm(name).needs(1) == replace(algorithm(name).needs(1), teacher=False, rewards=True) for name in ("grpo", "ppo", "remax")
    )
    with pytest.raises(AssertionError, match="the trainer computes what `needs` asks for"):
        together(1, lambda ranks: algorithm("opd").compute_advantages(collate([], ranks, 1, 0)[1], Signals(), State(), ranks))  # type: ignore[arg-type]
