from __future__ import annotations

import random

import pytest
import torch

from rlkit.ops import kl
from tests.ops import oracle

CASES = [(0.0, 0.0), (-1e-3, -1e-3 - 1e-7), (-700.0, -1.0), (-1.0, -700.0), (-1e-300, -5.0)]
RNG = random.Random(0)
RANDOM = [(-RNG.expovariate(0.3), -RNG.expovariate(0.3)) for _ in range(200)]


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_each_estimator_is_the_papers_with_its_gradient(name: str) -> None:
    estimator, truth = getattr(kl, name), getattr(oracle, name)
    for pi, ref in [*CASES, *RANDOM]:
        at = torch.tensor(pi, dtype=torch.float64, requires_grad=True)
        value = estimator(at, torch.tensor(ref, dtype=torch.float64))
        value.backward()
        assert value.item() == pytest.approx(truth(pi, ref), rel=1e-10, abs=1e-10)
        if abs(pi - ref) < 20:
            assert at.grad is not None
            assert at.grad.item() == pytest.approx(oracle.slopes(lambda x, r=ref: truth(x[0], r), [pi])[0], rel=1e-6, abs=1e-6)


def test_exact_expectations() -> None:
    """pi = (1/2, 1/2), ref = (1/4, 3/4): KL = ln 2 / 2 + ln(2/3) / 2; k1 and k3 are unbiased, k2's gradient is the KL's."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    pi, ref = torch.log_softmax(logits, 0), torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    truth = (pi.exp() * (pi - ref)).sum()
    assert truth.item() == pytest.approx(0.14384103622589045, abs=1e-15)
    for unbiased in (kl.k1, kl.k3):
        assert (pi.exp() * unbiased(pi, ref)).sum().item() == pytest.approx(truth.item(), abs=1e-15)
    exact = torch.autograd.grad(truth, logits, retain_graph=True)[0]
    sampled = torch.autograd.grad((pi.detach().exp() * kl.k2(pi, ref)).sum(), logits, retain_graph=True)[0]
    nothing = torch.autograd.grad((pi.detach().exp() * kl.k1(pi, ref)).sum(), logits)[0]
    assert torch.allclose(sampled, exact, atol=1e-15) and nothing.abs().max() < 1e-15


def test_rounding_makes_no_divergence_of_its_own() -> None:
    """Two passes over one policy differ by 5e-6 in float32: the true k3 is 1.25e-11, and never negative."""
    pi = -torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 10
    noise = torch.where(torch.arange(1000) % 2 == 0, 5e-6, -5e-6)
    divergence = kl.k3(pi, pi + noise)
    assert divergence.min() >= 0 and divergence.max() < 1e-9
