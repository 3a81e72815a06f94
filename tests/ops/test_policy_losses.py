"""The losses beside the clipped one, and the correction of the sampler: exact numbers, then loops, then the far ends."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from rlkit.ops import surrogate
from tests.ops import oracle

LOW, HIGH = 0.2, 0.28


def number(x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "cut"),
    [
        (4.0, -2.0, 6.0, 0.0, True),  # -r A is 8, held at 3 x 2
        (2.5, -2.0, 5.0, 5.0, False),
        (0.5, -2.0, 1.6, 0.0, True),  # the lower clip still holds
        (4.0, 2.0, -2.56, 0.0, True),  # a good token knows no second clip
        (4.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_the_dual_clip_holds_bad_tokens(ratio: float, advantage: float, loss: float, slope: float, cut: bool) -> None:
    at = number(math.log(ratio)).requires_grad_()
    value, held = surrogate.dual_clip_loss(at, number(advantage), LOW, HIGH, 3.0)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-12) and held.item() is cut
    assert at.grad is not None and at.grad.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(("ratio", "weight", "cut"), [(1.0, 1.0, False), (2.0, 1.28, True), (0.5, 0.8, True), (1.2, 1.2, False)])
def test_every_token_of_cispo_has_a_gradient(ratio: float, weight: float, cut: bool) -> None:
    """-w A log pi with w held: the slope is -w A whatever the ratio."""
    at = number(-3.0).requires_grad_()
    value, held = surrogate.cispo_loss(at - (-3.0 - math.log(ratio)), at, number(2.0), LOW, HIGH)
    value.sum().backward()
    assert value.item() == pytest.approx(6.0 * weight, abs=1e-12) and held.item() is cut
    assert at.grad is not None and at.grad.item() == pytest.approx(-2.0 * weight, abs=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 3.0, 0.25])
def test_reinforce_weighs_samples_of_an_older_policy(ratio: float) -> None:
    """-r A log pi with r held: at log pi = -3 and A = 2 the value is 6 r, the slope -2 r. Nothing is cut, however large."""
    at = number(-3.0).requires_grad_()
    value, held = surrogate.reinforce_loss(at - (-3.0 - math.log(ratio)), at, number(2.0))
    value.sum().backward()
    assert value.item() == pytest.approx(6.0 * ratio, abs=1e-12) and held.item() is False
    assert at.grad is not None and at.grad.item() == pytest.approx(-2.0 * ratio, abs=1e-12)


@pytest.mark.parametrize(
    ("policy", "sampler", "advantage", "cut"),
    [
        (0.75, 0.5, 2.0, True),  # the probability of a good token rose by 1/4
        (0.5, 0.375, 2.0, False),  # by 1/8
        (0.25, 0.75, 2.0, False),  # it fell, and the update leads back
        (0.25, 0.5, -2.0, True),  # that of a bad token fell by 1/4
        (0.375, 0.5, -2.0, False),
        (0.75, 0.25, -2.0, False),
        (0.0625, 0.0009765625, 2.0, False),  # 64 times as likely, and by 0.0615: a ratio would be clipped
        (0.75, 0.25, 0.0, False),
    ],
)
def test_dppo_stops_a_token_by_how_much_its_probability_moved(policy: float, sampler: float, advantage: float, cut: bool) -> None:
    """-A log pi with slope -A, or 0 with none."""
    at = number(math.log(policy)).requires_grad_()
    value, held = surrogate.dppo_loss(at, number(math.log(sampler)), number(advantage), LOW, LOW)
    value.sum().backward()
    assert held.item() is cut and value.item() == pytest.approx(0.0 if cut else -advantage * math.log(policy), abs=1e-12)
    assert at.grad is not None and at.grad.item() == pytest.approx(0.0 if cut else -advantage, abs=1e-12)


def test_the_bounds_of_dppo_are_those_of_their_side() -> None:
    """A quarter up is inside 0.28, a quarter down outside 0.2; a move of just the bound is inside."""
    policy, sampler = torch.tensor([0.75, 0.25, 0.75, 0.25]).double().log(), torch.tensor([0.5, 0.5, 0.5, 0.5]).double().log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    assert surrogate.dppo_loss(policy, sampler, advantages, LOW, HIGH)[1].tolist() == [False, True, False, True]
    assert surrogate.dppo_loss(policy, sampler, advantages, HIGH, LOW)[1].tolist() == [True, False, True, False]
    certain = torch.zeros(1), torch.full((1,), -math.inf)  # 1 and 0: a move of 1
    assert not surrogate.dppo_loss(*certain, torch.ones(1), 0.5, 1.0)[1].any()


def test_the_gate_of_sapo() -> None:
    """At ratio 1 the loss is -(2 / tau) A with slope -A, for both temperatures; far above, -(4 / tau) A with none."""
    for advantage, tau in ((2.0, 1.0), (-2.0, 1.05)):
        for x, loss, slope in ((0.0, -2 / tau * advantage, -advantage), (100.0, -4 / tau * advantage, 0.0)):
            at = number(x).requires_grad_()
            value, cut = surrogate.sapo_loss(at, number(advantage), 1.0, 1.05)
            value.sum().backward()
            assert value.item() == pytest.approx(loss, abs=1e-12) and not cut.item()
            assert at.grad is not None and at.grad.item() == pytest.approx(slope, abs=1e-12)


def test_each_loss_is_the_loop_with_its_gradient() -> None:
    rng = random.Random(9)
    for _ in range(200):
        x, advantage = rng.choice([0.0, rng.gauss(0, 0.3), rng.uniform(-8, 8)]), rng.choice([0.0, rng.gauss(0, 2), 50.0, -50.0])
        if min(abs(x - math.log(k)) for k in (1 - LOW, 1 + HIGH, 3.0)) < 1e-4:
            continue  # a kink has no slope
        for mine, theirs in (
            (lambda y, a: surrogate.dual_clip_loss(y, a, LOW, HIGH, 3.0)[0], lambda y, a: oracle.dual_clipped(y, a, LOW, HIGH, 3.0)),
            (lambda y, a: surrogate.sapo_loss(y, a, 1.0, 1.05)[0], lambda y, a: oracle.sapo(y, a, 1.0, 1.05)),
            (lambda y, a: surrogate.reinforce_loss(torch.zeros_like(y), y, a)[0], lambda y, a: -a * y),
        ):
            at = number(x).requires_grad_()
            value = mine(at, number(advantage))
            value.sum().backward()
            assert value.item() == pytest.approx(theirs(x, advantage), rel=1e-10, abs=1e-10)
            wanted = oracle.slopes(lambda y, f=theirs, a=advantage: f(y[0], a), [x])[0]
            assert at.grad is not None and at.grad.item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_a_sequence_has_one_ratio() -> None:
    """Log ratios 1, 0 and 2 where the 0 does not count: 3/2 at both; a sequence of nothing has none."""
    mask = torch.tensor([[True, False, True], [False, False, False]])
    given = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    whole = surrogate.sequence_log_ratio(given, mask)
    assert whole.tolist() == [[1.5, 0.0, 1.5], [0.0, 0.0, 0.0]]
    whole[0, 0].backward()
    assert given.grad is not None and given.grad[0].tolist() == [0.5, 0.5, 0.5]


def test_weights_for_the_sampler() -> None:
    """Ratios 1/2, 2, 4 and e^900 with a cap of 2: held, or dropped; the cap itself is inside. No gradient, no infinity."""
    logs = [*torch.tensor([0.5, 2.0, 4.0]).log().tolist(), 900.0]
    given = torch.tensor(logs, requires_grad=True)
    held, dropped = (surrogate.importance_weights(given, 2.0, drop) for drop in (False, True))
    assert held.tolist() == pytest.approx([0.5, 2.0, 2.0, 2.0]) and dropped.tolist() == pytest.approx([0.5, 2.0, 0.0, 0.0])
    assert not held.requires_grad and not dropped.requires_grad
    inside = surrogate.importance_weights(torch.tensor([0.25, 0.5, 2.0, 4.0]).log(), 2.0, True, 0.5)  # so is the floor
    assert inside.tolist() == pytest.approx([0.0, 0.5, 2.0, 0.0])
    assert torch.isfinite(surrogate.importance_weights(given, math.inf, False)).all()


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_past_all_numbers_makes_no_nan(advantage: float) -> None:
    for x in (200.0, -200.0):
        at = torch.tensor([x], requires_grad=True)
        a = torch.tensor([advantage])
        for value, _ in (
            surrogate.dual_clip_loss(at, a, LOW, HIGH, 3.0),
            surrogate.sapo_loss(at, a, 1.0, 1.05),
            surrogate.cispo_loss(at, at, a, LOW, HIGH),
            surrogate.reinforce_loss(at, at, a),
            surrogate.dppo_loss(-at.abs(), torch.zeros(1), a, LOW, HIGH),
            surrogate.dppo_loss(at * 0, -at.abs().detach(), a, LOW, HIGH),
        ):
            (slope,) = torch.autograd.grad(value.sum(), at, retain_graph=True)
            assert torch.isfinite(value).all() and torch.isfinite(slope).all()
