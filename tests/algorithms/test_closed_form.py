"""One token, K arms, nothing sampled: all K^G groups are enumerated, so that a gradient is the exact expectation of what a run would see.

J = E[r] - beta KL(pi || pi_ref) is largest at pi_ref exp(r / beta) / Z. Ascent is along the natural gradient, where that optimum is a few
steps away; what is taken for an end is the same as of any other ascent: an expected gradient of zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.algorithms import State
from rlkit.types import Batch, MicroBatch, Signals
from tests.algorithms.shipped import NAMES, algorithm
from tests.algorithms.tiny import Ranks, together

BETA = 0.5
REWARDS = torch.tensor([1.0, 0.2, 0.0, 0.7], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
TEACHER = torch.tensor([0.25, 0.05, 0.1, 0.6], dtype=torch.float64)
START = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
ARMS = len(REWARDS)
OPTIMUM = torch.softmax(REFERENCE.log() + REWARDS / BETA, 0)
K1 = {"kl_coef": BETA, "kl_in": "reward", "kl_estimator": "k1"}
K2, K3 = ({"kl_coef": BETA, "kl_in": "loss", "kl_estimator": k} for k in ("k2", "k3"))


def one_batch(groups: Tensor, pi: Tensor, rewards: Tensor) -> tuple[Batch, Signals]:
    """Groups [P, G] of arms as samples of one token. The greedy completion is the likeliest arm; the critic knows the mean."""
    arms = groups.flatten()  # [B]
    size = len(arms)
    grid = arms.unsqueeze(-1)  # [B, 1]
    logs, reference = pi.log(), REFERENCE.log()
    batch = Batch(
        samples=(),
        mask=torch.ones(size, 1, dtype=torch.bool),
        rollout_logprobs=logs[grid],
        rewards=rewards[arms],
        valid=torch.ones(size, dtype=torch.bool),
        group=torch.arange(len(groups)).repeat_interleave(groups.shape[1]),
        index=torch.arange(size),
        minibatch=torch.zeros(size, dtype=torch.int64),
        lag=torch.zeros(size, 1, dtype=torch.int64),
        size=size,
        baseline=rewards[pi.argmax()].expand(size),
    )
    value = (pi * (rewards - BETA * (logs - reference))).sum()
    return batch, Signals(logs[grid], reference[grid], value.expand(size, 1), TEACHER.log()[grid])


def expected_gradient(keys: Any, logits: Tensor, group_size: int, ranks: Ranks, rewards: Tensor) -> Tensor:
    """Of the loss by the logits, [K]; over all groups, each a step of its own where the step is whitened."""
    groups = torch.tensor(list(itertools.product(range(ARMS), repeat=group_size)))  # [K^G, G]
    at = logits.clone().requires_grad_()
    logs = torch.log_softmax(at, 0)
    pi = logs.detach().exp()
    chance = pi[groups].prod(-1)  # [K^G]
    whitens = "reinforce_pp" in keys.name or getattr(keys, "whiten", False)
    total = torch.zeros((), dtype=torch.float64)
    for part in range(len(groups)) if whitens else [slice(None)]:
        chosen = groups[part].view(-1, group_size)
        batch, signals = one_batch(chosen, pi, rewards)
        credit, _, _ = keys.compute_advantages(batch, signals, State(), ranks)
        new = logs[chosen.flatten()].unsqueeze(-1)  # [B, 1]
        rows = MicroBatch(
            batch.mask, new, torch.zeros_like(new), new.detach(), new.detach(), signals.ref_logprobs, credit.advantages.double()
        )
        losses = keys.compute_policy_loss(rows)[0].view(-1, group_size).mean(-1)  # [P]
        total = total + (losses * chance[part]).sum()
    return torch.autograd.grad(total, at)[0]


def ascended(keys: Any, group_size: int, steps: int, rate: float, rewards: Tensor = REWARDS, start: Tensor = START) -> Tensor:
    """The policy [K] after some steps along the natural gradient."""
    keys = keys.model_copy(update={"clip_high": 1.0})

    def work(ranks: Ranks) -> Tensor:
        logits = start.log()
        for _ in range(steps):
            pi = torch.softmax(logits, 0)
            fisher = pi.diag() - torch.outer(pi, pi)
            logits = logits - rate * torch.linalg.pinv(fisher) @ expected_gradient(keys, logits, group_size, ranks, rewards)
        return torch.softmax(logits, 0)

    return together(1, work)[0]


def apart(pi: Tensor, other: Tensor) -> float:
    """Total variation."""
    return float((pi - other).abs().sum() / 2)


REACHING: dict[str, tuple[Callable[[], Any], int]] = {
    "leave-one-out, k1 in the reward": (lambda: algorithm("rloo", **K1), 3),
    "group mean, k1 in the reward": (lambda: algorithm("grpo", scale="none", **K1), 3),
    "greedy baseline, k1 in the reward": (lambda: algorithm("remax", **K1), 1),
    "value baseline, k1 in the reward": (lambda: algorithm("ppo", whiten=False, **K1), 1),
    "leave-one-out, k2 in the loss": (lambda: algorithm("rloo", **K2), 2),
    "greedy baseline, k2 in the loss": (lambda: algorithm("remax", **K2), 1),
}


@pytest.mark.parametrize("name", REACHING)
def test_the_optimum_is_reached(name: str) -> None:
    keys, group_size = REACHING[name][0](), REACHING[name][1]
    assert apart(START, OPTIMUM) > 0.2
    assert apart(ascended(keys, group_size, steps=60, rate=1.0), OPTIMUM) < 1e-6


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_a_group_mean_beside_k2_in_the_loss_weakens_the_reward(group_size: int) -> None:
    """The mean holds the sample itself: (G - 1) / G of the reward is left, and of the KL all."""
    wanted = torch.softmax(REFERENCE.log() + (group_size - 1) / group_size * REWARDS / BETA, 0)
    got = ascended(algorithm("grpo", scale="none", **K2), group_size, steps=40, rate=1.0)
    assert apart(got, wanted) < 1e-6 and apart(got, OPTIMUM) > 0.01


def test_k3_in_the_loss_has_another_optimum() -> None:
    """pi = pi_ref / (1 + (E_pi[r] - r) / beta), with the one E that makes it a distribution; found by halving."""
    beta = 2.0
    low, high = float(REWARDS.max()) - beta + 1e-9, float(REWARDS.max())
    for _ in range(200):
        mean = (low + high) / 2
        low, high = (mean, high) if float((REFERENCE / (1 + (mean - REWARDS) / beta)).sum()) > 1 else (low, mean)
    wanted = REFERENCE / (1 + (low - REWARDS) / beta)
    assert float(wanted @ REWARDS) == pytest.approx(low, abs=1e-9)
    keys = algorithm("rloo", kl_coef=beta, kl_in="loss", kl_estimator="k3")
    got = ascended(keys, 2, steps=200, rate=0.2)
    assert apart(got, wanted) < 1e-6 and apart(got, torch.softmax(REFERENCE.log() + REWARDS / beta, 0)) > 1e-3


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_the_mean_of_a_group_gives_the_likelihood_up_to_its_size(group_size: int) -> None:
    """MaxRL: of sum_{k < G} pass@k / k, so the gradient of p, the chance of a right answer, weighs (1 - (1 - p)^(G - 1)) / p.

    That is 1 for G = 2 and 1 / p for many, of log p. Its theorem 5: one order less than G, as a group without a right answer is left out.
    """
    right = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    logits = START.log()
    got = together(1, lambda ranks: expected_gradient(algorithm("grpo", scale="group_mean"), logits, group_size, ranks, right))[0]
    at = logits.clone().requires_grad_()
    chance = torch.softmax(at, 0) @ right
    (slope,) = torch.autograd.grad(chance, at)
    weight = (1 - (1 - chance.item()) ** (group_size - 1)) / chance.item()
    assert slope.abs().max() > 0.05 and (got + weight * slope).abs().max() < 1e-7  # advantages are kept in float32


@pytest.mark.parametrize("name", ["rloo", "remax"])
def test_reinforce_follows_the_gradient_beyond_the_first_update(name: str) -> None:
    """Arms drawn by one policy, learnt from at another: the expected gradient is that of -E[r] where the policy is now."""
    old = torch.log_softmax(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 0)
    rewards = torch.tensor([1.0, 0.0, 0.2], dtype=torch.float64)
    at = torch.tensor([2.5, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    new = torch.log_softmax(at, 0).unsqueeze(-1)  # [K, 1]
    advantages = (rewards - old.exp() @ rewards).unsqueeze(-1)
    rows = MicroBatch(torch.ones(3, 1).bool(), new, torch.zeros_like(new), old.unsqueeze(-1), old.unsqueeze(-1), None, advantages)
    losses, _ = algorithm(name).compute_policy_loss(rows)
    (got,) = torch.autograd.grad((old.exp() * losses.squeeze(-1)).sum(), at, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(new.squeeze(-1).exp() @ rewards), at)
    assert wanted.abs().max() > 0.05 and (got - wanted).abs().max() < 1e-12


DIVIDING = {
    "grpo": (lambda: algorithm("grpo", **K1), 3),
    "reinforce_pp": (lambda: algorithm("reinforce_pp", **K1), 3),
    "reinforce_pp_baseline": (lambda: algorithm("reinforce_pp_baseline", **K1), 3),
    "ppo": (lambda: algorithm("ppo", **K1), 3),
}


@pytest.mark.parametrize("name", DIVIDING)
def test_with_a_std_the_optimum_is_a_fixed_point(name: str) -> None:
    """There r - beta k1 is the same for all arms: no sample has an advantage. Elsewhere the step is not zero."""
    keys, group_size = DIVIDING[name][0](), DIVIDING[name][1]
    still = together(1, lambda ranks: expected_gradient(keys, OPTIMUM.log(), group_size, ranks, REWARDS))[0]
    moving = together(1, lambda ranks: expected_gradient(keys, START.log(), group_size, ranks, REWARDS))[0]
    assert still.abs().max() < 1e-8 and moving.abs().max() > 0.05


@pytest.mark.parametrize("name", [name for name in NAMES if name != "opd"])
def test_without_a_kl_the_best_arm_wins(name: str) -> None:
    """And with the reward negated, the worst."""
    for rewards, best in ((REWARDS, 0), (-REWARDS, 2)):
        pi = START
        while pi[best] < 0.95:  # further on the Fisher matrix has no inverse
            before = pi
            pi = ascended(algorithm(name), 2, steps=4, rate=0.5, rewards=rewards, start=pi)
            assert pi @ rewards > before @ rewards


# -- distillation ----------------------------------------------------------------------------------------------------------------------


def divergence(pi: Tensor, other: Tensor) -> float:
    """KL(pi to other), nats."""
    return float((pi * (pi.log() - other.log())).sum())


@pytest.mark.parametrize("coef", [0.1, 1.0, 7.0])
def test_the_policy_becomes_its_teacher_whatever_the_coefficient(coef: float) -> None:
    """Of one sample a prompt, without rewards."""
    got = ascended(algorithm("opd", teacher_coef=coef), 1, steps=20, rate=1 / coef, rewards=torch.zeros_like(REWARDS))
    assert divergence(START, TEACHER) > 0.3 and divergence(got, TEACHER) < 1e-6


@pytest.mark.parametrize("group_size", [2, 3])
def test_with_rewards_it_becomes_the_product(group_size: int) -> None:
    """J = E[r] - coef KL(pi to pi_T) is largest at pi_T exp(r / coef) / Z."""
    for coef in (0.5, 2.0):
        got = ascended(algorithm("opd", teacher_coef=coef), group_size, steps=40, rate=1 / coef)
        assert divergence(got, torch.softmax(TEACHER.log() + REWARDS / coef, 0)) < 1e-6 < divergence(got, TEACHER)


def test_beside_a_reference_it_becomes_their_mean() -> None:
    """coef KL(pi to pi_T) + beta KL(pi to pi_ref) is least at the weighted geometric mean of the two."""
    keys = algorithm("opd", teacher_coef=1.5, **K1)
    got = ascended(keys, 1, steps=20, rate=1 / (1.5 + BETA), rewards=torch.zeros_like(REWARDS))
    assert divergence(got, torch.softmax((1.5 * TEACHER.log() + BETA * REFERENCE.log()) / (1.5 + BETA), 0)) < 1e-6


def test_the_expected_gradient_is_that_of_the_divergence() -> None:
    logits = START.log()
    keys = algorithm("opd", teacher_coef=0.7)
    got = together(1, lambda ranks: expected_gradient(keys, logits, 1, ranks, torch.zeros_like(REWARDS)))[0]
    at = logits.clone().requires_grad_()
    logs = torch.log_softmax(at, 0)
    (wanted,) = torch.autograd.grad(0.7 * (logs.exp() * (logs - TEACHER.log())).sum(), at)
    assert wanted.abs().max() > 0.1 and (got - wanted).abs().max() < 1e-7
