"""Losses of preferences against their papers' formulas in plain floats, and what is known of them without a formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlkit.ops import preference
from tests.ops import oracle

BETA, E = 0.3, 0.2


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def odds(x: float) -> float:
    return math.exp(x) / (1 - math.exp(x))


ONE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {  # of a margin
    "sigmoid": (lambda h: preference.dpo_loss(h, BETA), lambda h: -math.log(s(BETA * h))),
    "smoothed": (
        lambda h: preference.conservative_dpo_loss(h, BETA, E),
        lambda h: -(1 - E) * math.log(s(BETA * h)) - E * math.log(s(-BETA * h)),
    ),
    "hinge": (lambda h: preference.hinge_loss(h, BETA), lambda h: max(0.0, 1 - BETA * h)),
    "ipo": (lambda h: preference.ipo_loss(h, BETA), lambda h: (h - 1 / (2 * BETA)) ** 2),
    "robust": (
        lambda h: preference.robust_dpo_loss(h, BETA, E),
        lambda h: (-(1 - E) * math.log(s(BETA * h)) + E * math.log(s(-BETA * h))) / (1 - 2 * E),
    ),
}
TWO: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float, float], float]]] = {  # of mean log-probs
    "simpo": (lambda w, r: preference.simpo_loss(w, r, 2.0, 0.5), lambda w, r: -math.log(s(2 * (w - r) - 0.5))),
    "orpo": (lambda w, r: preference.orpo_loss(w, r, 0.1), lambda w, r: -w - 0.1 * math.log(s(math.log(odds(w) / odds(r))))),
}


@pytest.mark.parametrize("name", ONE)
def test_a_loss_of_margins_is_the_papers_with_its_gradient(name: str) -> None:
    mine, theirs = ONE[name]
    rng = random.Random(12)
    margins = [0.0, 100.0, -100.0, *(rng.gauss(0, 5) for _ in range(100))]
    at = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    losses = mine(at)
    assert losses.shape == at.shape  # law 2
    losses.sum().backward()
    assert at.grad is not None
    for i, h in enumerate(margins):
        assert losses[i].item() == pytest.approx(theirs(h), rel=1e-10, abs=1e-10)
        assert at.grad[i].item() == pytest.approx(oracle.slopes(lambda x: theirs(x[0]), [h])[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", TWO)
def test_a_loss_without_a_reference_is_the_papers_with_its_gradient(name: str) -> None:
    mine, theirs = TWO[name]
    rng = random.Random(13)
    for _ in range(100):
        pair = [-rng.expovariate(0.5) - 1e-3, -rng.expovariate(0.5) - 1e-3]
        at = torch.tensor(pair, dtype=torch.float64, requires_grad=True)
        loss = mine(at[:1], at[1:])
        loss.sum().backward()
        assert loss.item() == pytest.approx(theirs(*pair), rel=1e-10, abs=1e-10)
        wanted = oracle.slopes(lambda x: theirs(*x), pair, step=1e-7)
        assert at.grad is not None and at.grad.tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_where_policy_and_reference_agree() -> None:
    """Margin 0: ln 2 for the three that are logistic, 1 for the hinge, 1 / (4 beta^2) for IPO."""
    nothing = torch.zeros(1, dtype=torch.float64)
    for name in ("sigmoid", "smoothed", "robust"):
        assert ONE[name][0](nothing).item() == pytest.approx(math.log(2), abs=1e-15)
    assert ONE["hinge"][0](nothing).item() == 1.0 and ONE["ipo"][0](nothing).item() == pytest.approx(1 / (4 * BETA**2))


def test_robust_is_dpo_in_expectation() -> None:
    """Of labels flipped at the rate e: (1 - e) L(h) + e L(-h) is DPO's loss under the true label."""
    h = torch.linspace(-9, 9, 7, dtype=torch.float64)
    mean = (1 - E) * preference.robust_dpo_loss(h, BETA, E) + E * preference.robust_dpo_loss(-h, BETA, E)
    assert torch.allclose(mean, preference.dpo_loss(h, BETA), atol=1e-14)


def test_nothing_overflows() -> None:
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    for mine, _ in ONE.values():
        (slope,) = torch.autograd.grad(mine(far).sum(), far, retain_graph=True)
        assert torch.isfinite(mine(far)).all() and torch.isfinite(slope).all()
    sure = torch.tensor([0.0, -1e-9, -1e4], requires_grad=True)
    for mine2, _ in TWO.values():
        value = mine2(sure, sure.flip(0))
        (slope,) = torch.autograd.grad(value.sum(), sure)
        assert torch.isfinite(value).all() and torch.isfinite(slope).all()


def test_kto_by_hand_and_by_loop() -> None:
    """x = 0 and z = 0: half of each weight. The baseline is a mean, never negative, and no gradient goes through it."""
    x, good = torch.zeros(2, dtype=torch.float64), torch.tensor([True, False])
    assert preference.kto_loss(x, good, torch.tensor(0.0), BETA, 1.0, 1.5).tolist() == [0.5, 0.75]
    z = preference.kto_baseline(torch.tensor(6.0, requires_grad=True), torch.tensor(4))
    assert z.item() == 1.5 and not z.requires_grad
    assert (
        preference.kto_baseline(torch.tensor(-6.0), torch.tensor(4)).item()
        == preference.kto_baseline(torch.tensor(0.0), torch.tensor(0)).item()
        == 0
    )
    rng = random.Random(14)
    ratios, flags = [rng.gauss(0, 5) for _ in range(50)], [rng.random() < 0.5 for _ in range(50)]
    at = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
    losses = preference.kto_loss(at, torch.tensor(flags), z.double(), BETA, 1.2, 0.7)
    losses.sum().backward()
    assert at.grad is not None
    for i, (r, flag) in enumerate(zip(ratios, flags, strict=True)):

        def theirs(v: list[float], flag: bool = flag) -> float:
            return 1.2 * (1 - s(BETA * (v[0] - 1.5))) if flag else 0.7 * (1 - s(BETA * (1.5 - v[0])))

        assert losses[i].item() == pytest.approx(theirs([r]), rel=1e-10, abs=1e-10)
        assert at.grad[i].item() == pytest.approx(oracle.slopes(theirs, [r])[0], rel=1e-6, abs=1e-6)
