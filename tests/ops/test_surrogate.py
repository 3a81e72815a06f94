from __future__ import annotations

import math
import random

import pytest
import torch

from rlkit.ops.surrogate import log_ratio, ppo_clip_loss
from tests.ops import oracle

LOW, HIGH = 0.2, 0.28


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "cut"),
    [
        (1.0, 2.0, -2.0, -2.0, False),  # at ratio 1 the gradient is -A
        (1.0, -2.0, 2.0, 2.0, False),
        (1.25, 2.0, -2.5, -2.5, False),  # below the upper bound 1.28
        (1.5, 2.0, -2.56, 0.0, True),  # good enough: held
        (1.5, -2.0, 3.0, 3.0, False),  # a bad token that grew is pushed back
        (0.5, -2.0, 1.6, 0.0, True),  # a bad token is small enough: held
        (0.5, 2.0, -1.0, -1.0, False),  # a good token that shrank is lifted
        (1.5, 0.0, 0.0, 0.0, False),
        (0.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_exact_losses(ratio: float, advantage: float, loss: float, slope: float, cut: bool) -> None:
    at = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    value, held = ppo_clip_loss(at, torch.tensor([advantage], dtype=torch.float64), LOW, HIGH)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-12) and held.item() is cut
    assert at.grad is not None and at.grad.item() == pytest.approx(slope, abs=1e-12)  # d r / d log r = r


def test_the_surrogate_is_the_loop_with_its_gradient() -> None:
    rng = random.Random(6)
    for _ in range(300):
        x, advantage = rng.choice([0.0, rng.gauss(0, 0.3), rng.uniform(-30, 30)]), rng.choice([0.0, rng.gauss(0, 2), 1e3])
        if min(abs(x - math.log(1 - LOW)), abs(x - math.log(1 + HIGH))) < 1e-4:
            continue  # a kink has no slope
        at = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        value, _ = ppo_clip_loss(at, torch.tensor([advantage], dtype=torch.float64), LOW, HIGH)
        value.sum().backward()
        assert value.item() == pytest.approx(oracle.clipped(x, advantage, LOW, HIGH), rel=1e-10, abs=1e-10)
        wanted = oracle.slopes(lambda y, a=advantage: oracle.clipped(y[0], a, LOW, HIGH), [x])[0]
        assert at.grad is not None and at.grad.item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("advantage", "loss"), [(1.0, -1.28), (0.0, 0.0)])
def test_a_ratio_past_all_numbers_is_held_without_nan(advantage: float, loss: float) -> None:
    """exp(100) is no float32: where the clip holds, or nothing pulls, loss and gradient are finite still."""
    at = torch.tensor([100.0], requires_grad=True)
    value, _ = ppo_clip_loss(at, torch.tensor([advantage]), LOW, HIGH)
    value.sum().backward()
    assert value.item() == pytest.approx(loss) and at.grad is not None and at.grad.item() == 0.0


def test_what_does_not_count_has_ratio_one() -> None:
    new = torch.tensor([[-1.0, -900.0]], requires_grad=True)
    ratios = log_ratio(new, torch.tensor([[-1.5, torch.inf]]), torch.tensor([[True, False]]))
    assert ratios.tolist() == [[0.5, 0.0]]
    ratios.sum().backward()
    assert new.grad is not None and new.grad.tolist() == [[1.0, 0.0]]


def test_one_value_a_token() -> None:
    value, cut = ppo_clip_loss(torch.zeros(3, 5), torch.arange(15.0).view(3, 5), LOW, HIGH)
    assert torch.equal(value, -torch.arange(15.0).view(3, 5)) and cut.shape == (3, 5) and not cut.any()
