"""Leave-one-out, rewards to go, generalised advantages, the critic's loss, the KL controller."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rlkit.ops import kl, returns, values
from tests.ops import oracle


def wide(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_leave_one_out_by_hand() -> None:
    """1, 0, 0: the others' means are 0, 1/2, 1/2. A failed reward is nobody's other; alone there is no baseline."""
    rewards, group = wide([[1.0, 0.0, 0.0, 9.0, 4.0, 7.0]])[0], torch.tensor([0, 0, 0, 1, 1, 1])
    valid = torch.tensor([True, True, True, False, True, False])
    assert returns.leave_one_out(rewards, valid, group, 2).tolist() == [1.0, -0.5, -0.5, 0.0, 0.0, 0.0]


def test_leave_one_out_is_the_loop() -> None:
    rng = random.Random(10)
    for _ in range(100):
        groups = [g for g in range(rng.randint(1, 4)) for _ in range(rng.randint(1, 5))]
        rewards: list[float | None] = [None if rng.random() < 0.2 else rng.choice([0.1, rng.gauss(0, 4)]) for _ in groups]
        numbers = torch.tensor([1e9 if r is None else r for r in rewards], dtype=torch.float64)
        valid = torch.tensor([r is not None for r in rewards])
        mine = returns.leave_one_out(numbers, valid, torch.tensor(groups), max(groups) + 1)
        assert mine.tolist() == pytest.approx(oracle.leave_one_out(rewards, groups), rel=1e-10, abs=1e-10)


def test_maximum_likelihood_by_hand() -> None:
    """1 of 4 right, 3 of 4, none, 1 of 2 that have a reward, all of the same reward. A rare success weighs 3, a common one 1/3."""
    rewards = wide([[1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 9, 0.3, 0.3]])[0]
    group = torch.tensor([0] * 4 + [1] * 4 + [2] * 2 + [3] * 3 + [4] * 2)
    mine = returns.divide_by_group_mean(rewards, rewards < 2, group, 5).tolist()
    assert mine == pytest.approx([3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, 0, 0, 1, -1, 0, 0, 0], abs=1e-12)
    nothing = torch.tensor([1e-17, 0.0, 0.0])  # what rounding leaves of weighted rewards is no success
    assert returns.divide_by_group_mean(nothing, nothing == nothing, group[:3], 1).abs().max() < 1e-9


def test_maximum_likelihood_is_the_loop() -> None:
    rng = random.Random(12)
    for _ in range(100):
        groups = [g for g in range(rng.randint(1, 4)) for _ in range(rng.randint(1, 6))]
        rewards: list[float | None] = [None if rng.random() < 0.2 else rng.choice([0.0, 0.0, 1.0, rng.random()]) for _ in groups]
        numbers = torch.tensor([1e9 if r is None else r for r in rewards], dtype=torch.float64)
        valid = torch.tensor([r is not None for r in rewards])
        mine = returns.divide_by_group_mean(numbers, valid, torch.tensor(groups), max(groups) + 1)
        assert mine.tolist() == pytest.approx(oracle.maximum_likelihood(rewards, groups), rel=1e-10, abs=1e-10)


def test_rewards_to_go_and_at_the_end_by_hand() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, False, False], [True, True, True, True]])
    assert returns.reward_on_last_token(wide([[5.0, 6.0, 7.0]])[0], mask).tolist() == [[0, 0, 5, 0], [0, 0, 0, 0], [0, 0, 0, 7]]
    assert returns.reward_to_go(wide([[1, 99, 2, 99], [1, 1, 1, 1], [1, 2, 3, 4]]), mask).tolist() == [
        [3, 0, 2, 0],
        [0, 0, 0, 0],
        [10, 9, 7, 4],
    ]


def test_generalised_advantages_by_hand() -> None:
    """gamma 1/2, lambda 1/2, values 1, 2, 4, reward 8 at the end. Deltas: 0, 0, 4. Then with the middle token masked: deltas 1, 4."""
    rewards, before = wide([[0, 0, 8], [0, 0, 8]]), wide([[1, 2, 4], [1, 2, 4]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assert returns.gae(rewards, before, mask, 0.5, 0.5).tolist() == [[0.25, 1.0, 4.0], [2.0, 0.0, 4.0]]


def test_generalised_advantages_are_the_sum() -> None:
    rng = random.Random(11)
    for gamma, lam in ((1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (1.0, 0.5)):
        for _ in range(20):
            mask = oracle.ragged(rng)
            rewards, before = ([[rng.gauss(0, 2) for _ in row] for row in mask] for _ in range(2))
            mine = returns.gae(wide(rewards), wide(before), torch.tensor(mask), gamma, lam)
            for row, (r, v, m) in enumerate(zip(rewards, before, mask, strict=True)):
                assert mine[row].tolist() == pytest.approx(oracle.gae(r, v, m, gamma, lam), rel=1e-10, abs=1e-10)
            togo = returns.reward_to_go(wide(rewards), torch.tensor(mask))
            for row, (r, m) in enumerate(zip(rewards, mask, strict=True)):
                assert togo[row].tolist() == pytest.approx(oracle.to_go(r, m), rel=1e-10, abs=1e-10)


def test_generalised_advantages_of_nothing() -> None:
    assert returns.gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 1.0, 1.0).shape == (2, 0)


@pytest.mark.parametrize(
    ("value", "loss", "slope", "cut"),
    [
        (1.1, 0.405, -0.9, False),  # near where it was (1), towards 2: (1.1 - 2)^2 / 2
        (1.5, 0.32, 0.0, True),  # moved past 1.2: held there, (1.2 - 2)^2 / 2
        (0.5, 1.125, -1.5, False),  # moved away: pulled back, (0.5 - 2)^2 / 2
    ],
)
def test_the_critics_loss_by_hand(value: float, loss: float, slope: float, cut: bool) -> None:
    at = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    losses, held = values.value_clip_loss(at, torch.tensor([1.0]), torch.tensor([2.0]), 0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=1e-7) and held.item() is cut
    assert at.grad is not None and at.grad.item() == pytest.approx(slope, abs=1e-7)


def test_the_kl_controller() -> None:
    """One tenth of the relative error, itself held at a fifth."""
    assert kl.adapt_coefficient(0.5, 6.6, 6.0) == pytest.approx(0.505, abs=1e-12)
    assert kl.adapt_coefficient(0.5, 60.0, 6.0) == pytest.approx(0.51, abs=1e-12) and kl.adapt_coefficient(0.5, -3.0, 6.0) == pytest.approx(
        0.49, abs=1e-12
    )
    assert kl.adapt_coefficient(0.5, 6.0, 6.0) == 0.5
