from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rlkit.ops import returns
from tests.ops import oracle

Rewards = list[float | None]


def tensors(rewards: Rewards, groups: list[int]) -> tuple[Tensor, Tensor, Tensor, int]:
    numbers = torch.tensor([0.0 if r is None else r for r in rewards], dtype=torch.float64)
    return numbers, torch.tensor([r is not None for r in rewards]), torch.tensor(groups), max(groups) + 1


def test_exact_advantages() -> None:
    """1, 0, 0: mean 1/3, std (n-1) 1/sqrt(3), so 2/sqrt(3) and twice -1/sqrt(3)."""
    given = tensors([1.0, 0.0, 0.0], [0, 0, 0])
    assert returns.centre_by_group(*given).tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3], abs=1e-15)
    assert returns.normalise_by_group(*given).tolist() == pytest.approx([2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5], abs=1e-15)
    assert returns.normalise_by_group(*tensors([3.0, 1.0], [0, 0])).tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-15)


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]),  # their mean is 0.10000000000000002
        ([0.7] * 6, [0.0] * 6),
        ([-1e6] * 3, [0.0] * 3),
        ([0.0, None, 0.0], [0.0, 0.0, 0.0]),
        ([5.0, None, None], [0.0, 0.0, 0.0]),  # one alone has no baseline
        ([None, None], [0.0, 0.0]),
        ([1.0, None, 0.0], [0.5**0.5, 0.0, -(0.5**0.5)]),  # a failure is no reward of zero
    ],
)
def test_groups_without_a_spread_and_failed_rewards(rewards: Rewards, advantages: list[float]) -> None:
    assert returns.normalise_by_group(*tensors(rewards, [0] * len(rewards))).tolist() == pytest.approx(advantages, abs=1e-15)


def test_rounding_makes_no_signal() -> None:
    """0.1 + 0.2 is not 0.3 by 5.6e-17: the floor of the std leaves nothing of that."""
    advantages = returns.normalise_by_group(*tensors([0.1 + 0.2, 0.3, 0.3], [0, 0, 0]))
    assert advantages.abs().max() < 1e-10


def test_a_spread_below_the_floor_is_divided_by_the_floor() -> None:
    advantages = returns.normalise_by_group(*tensors([2e-8, 0.0], [0, 0]))
    assert advantages.tolist() == pytest.approx([0.01, -0.01], rel=1e-10)  # 1e-8 / 1e-6


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_are_the_loop_on_random_groups(scale: bool) -> None:
    rng = random.Random(4)
    estimate = returns.normalise_by_group if scale else returns.centre_by_group
    for _ in range(100):
        groups = [g for g in range(rng.randint(1, 5)) for _ in range(rng.randint(1, 6))]
        kind = rng.choice([lambda: float(rng.random() < 0.5), lambda: rng.gauss(3, 10), lambda: rng.choice([0.1 + 0.2, 0.3, 0.1])])
        rewards: Rewards = [None if rng.random() < 0.2 else kind() for _ in groups]
        order = rng.sample(range(len(groups)), len(groups))  # the samples of a group need not stand together
        rewards, groups = [rewards[i] for i in order], [groups[i] for i in order]
        numbers, valid, group, count = tensors(rewards, groups)
        numbers[~valid] = 1e9  # whatever stands there
        wanted = oracle.advantages(rewards, groups, scale)
        assert estimate(numbers, valid, group, count).tolist() == pytest.approx(wanted, rel=1e-10, abs=1e-10)


def test_which_groups_are_alike() -> None:
    rewards: Rewards = [0.1, 0.1, 0.0, 1.0, 2.0, None, None]
    assert returns.group_spread_is_zero(*tensors(rewards, [0, 0, 1, 1, 2, 2, 3])).tolist() == [True, False, True, True]


def test_a_mean_shifted_or_scaled_by_the_reward_changes_nothing() -> None:
    rng = random.Random(5)
    rewards: Rewards = [rng.gauss(0, 1) for _ in range(12)]
    groups = [i // 4 for i in range(12)]
    plain = returns.normalise_by_group(*tensors(rewards, groups))
    moved = returns.normalise_by_group(*tensors([3 * r + 7 for r in rewards if r is not None], groups))
    assert moved.tolist() == pytest.approx(plain.tolist(), abs=1e-12)
