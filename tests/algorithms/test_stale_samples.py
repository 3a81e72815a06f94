"""Completions that older weights sampled, nothing drawn: all are enumerated, so that the bias of each correction is exact.

A completion is two tokens of three values, so it has nine. The policy climbs the gradient of its expected reward; the sampler is the policy
of some steps before, or was it for the first token alone, as in a completion that was begun then and ended now. The table of
rlkit/algorithms/README.md is that of `measure_bias` and `measure_spread`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.types import MicroBatch
from tests.algorithms.shipped import algorithm

PAGE = Path(__file__).resolve().parents[2] / "rlkit" / "algorithms" / "README.md"
VALUES, RATE = 3, 3.0
REWARDS = torch.tensor([[1.0, 0.0, 0.3], [0.2, 0.6, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64).flatten()  # [9], of first and second token
START = torch.tensor([[0.0, 0.6, 0.3], [0.5, 0.0, 0.0], [0.0, 0.2, 0.4], [0.3, 0.0, -0.3]], dtype=torch.float64)  # logits, [1 + 3, 3]
STALE = [(1, False), (4, False), (6, False), (4, True)]  # steps of all tokens, or of the first alone
ICEPOP = {"correction": "mask", "correction_cap": 5.0, "correction_floor": 0.5}
SEQUENCE_MASK = {"correction": "mask", "correction_level": "sequence", "correction_floor": 0.5}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "`correction=none`": {"correction": "none"},
    "`correction=truncate`, the default": {},
    "`correction=mask`": {"correction": "mask"},
    "IcePop: `correction=mask correction_cap=5 correction_floor=0.5`": ICEPOP,
    "`correction_level=sequence`": {"correction_level": "sequence"},
    "`correction=mask correction_level=sequence correction_floor=0.5`": SEQUENCE_MASK,
    "DPPO: `loss=dppo correction_cap=5`": {"loss": "dppo", "correction_cap": 5.0},
}


def compute_logprobs(logits: Tensor) -> Tensor:
    """Of both tokens of each completion; [9, 2]."""
    logs = torch.log_softmax(logits, -1)
    return torch.stack([logs[0].repeat_interleave(VALUES), logs[1:].flatten()], -1)


def true_gradient(logits: Tensor) -> Tensor:
    """Of the expected reward; [4, 3]."""
    at = logits.clone().requires_grad_()
    return torch.autograd.grad(compute_logprobs(at).sum(-1).exp() @ REWARDS, at)[0]


@cache
def climb(steps: int) -> Tensor:
    """The logits of the policy after some steps."""
    if not steps:
        return START
    before = climb(steps - 1)
    return before + RATE * true_gradient(before)


def sampled_gradients(keys: Any, logits: Tensor, sampler: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that an update follows on each completion, [9, 12], and the chance of each; sampler: log-probs [9, 2]."""
    chance = sampler.sum(-1).exp()
    advantages = (REWARDS - chance @ REWARDS).unsqueeze(-1).expand(-1, 2)
    at = logits.clone().requires_grad_()
    new = compute_logprobs(at)
    rows = MicroBatch(torch.ones(9, 2).bool(), new, torch.zeros(9, 2), new.detach(), sampler, None, advantages)
    losses = keys.compute_policy_loss(rows)[0].sum(-1)  # [9]
    each = [torch.autograd.grad(-loss, at, retain_graph=True)[0].flatten() for loss in losses]
    return torch.stack(each), chance


def sampler_of(steps: int, begun: bool) -> Tensor:
    """Log-probs [9, 2] of the first weights for a policy `steps` later; begun: of their first token alone."""
    old, new = compute_logprobs(START), compute_logprobs(climb(steps))
    return torch.stack([old[:, 0], new[:, 1]], -1) if begun else old


def measure_bias(changes: dict[str, Any], steps: int, begun: bool) -> float:
    """The distance of the expected gradient from the true one, over the length of the true one."""
    each, chance = sampled_gradients(algorithm("grpo", **changes), climb(steps), sampler_of(steps, begun))
    wanted = true_gradient(climb(steps)).flatten()
    return float((chance @ each - wanted).norm() / wanted.norm())


def measure_spread(changes: dict[str, Any], steps: int) -> float:
    """The standard deviation of the gradient of one completion, over the length of the true gradient."""
    each, chance = sampled_gradients(algorithm("grpo", **changes), climb(steps), sampler_of(steps, False))
    spread = chance @ (each - chance @ each).square().sum(-1)
    return float(spread.sqrt() / true_gradient(climb(steps)).norm())


def test_the_table_of_the_page() -> None:
    lines = []
    for name, changes in CORRECTIONS.items():
        numbers = [*(measure_bias(changes, *stale) for stale in STALE), measure_spread(changes, 4)]
        lines.append(f"| {name} | {' | '.join(f'{x:.2f}' for x in numbers)} |")
    text = PAGE.read_text().splitlines()
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize("changes", CORRECTIONS.values(), ids=CORRECTIONS)
def test_samples_of_the_current_weights_have_no_bias(changes: dict[str, Any]) -> None:
    """No correction touches them: the expected gradient is the true one."""
    for steps in (0, 3):
        logits = climb(steps)
        each, chance = sampled_gradients(algorithm("grpo", **changes), logits, compute_logprobs(logits))
        assert (chance @ each - true_gradient(logits).flatten()).abs().max() < 1e-12


def test_only_the_ratio_of_a_whole_completion_removes_the_bias() -> None:
    """What no correction here is, since it grows without bound with the length: the enumeration itself is right to rounding."""
    for steps, begun in STALE:
        sampler, logits = sampler_of(steps, begun), climb(steps)
        each, chance = sampled_gradients(algorithm("grpo", correction="none"), logits, sampler)
        ratio = (compute_logprobs(logits) - sampler).sum(-1).exp()
        assert ((chance * ratio) @ each - true_gradient(logits).flatten()).abs().max() < 1e-12


def test_a_completion_of_one_token_is_corrected_without_bias() -> None:
    """The ratio of the token is the whole one: held by no cap it removes the bias, and so does IcePop as long as all lies inside."""
    logits = climb(1)
    old, new = (torch.log_softmax(x[0], -1).unsqueeze(-1) for x in (START, logits))  # [3, 1]
    chance = old.squeeze(-1).exp()
    rewards = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    for changes in ({"correction_cap": 50.0}, ICEPOP):
        at = logits[0].clone().requires_grad_()
        policy = torch.log_softmax(at, -1).unsqueeze(-1)
        advantages = (rewards - chance @ rewards).unsqueeze(-1)
        rows = MicroBatch(torch.ones(3, 1).bool(), policy, torch.zeros(3, 1), new, old, None, advantages)
        losses = algorithm("grpo", **changes).compute_policy_loss(rows)[0].squeeze(-1)
        (got,) = torch.autograd.grad(-(chance @ losses), at, retain_graph=True)
        (wanted,) = torch.autograd.grad(policy.squeeze(-1).exp() @ rewards, at)
        assert wanted.abs().max() > 0.05 and (got - wanted).abs().max() < 1e-12


def test_each_correction_removes_a_part_of_the_bias_of_a_step() -> None:
    """One step old no ratio is past a bound: a third to a half of the bias is gone, for little spread."""
    plain = measure_bias({"correction": "none"}, 1, False)
    for changes in list(CORRECTIONS.values())[1:]:
        assert 0.4 * plain < measure_bias(changes, 1, False) < 0.75 * plain
        assert measure_spread(changes, 1) < 1.1 * measure_spread({"correction": "none"}, 1)
