"""The loss that all online algorithms share: every policy loss with every addition against loops, what is refused, what is watched."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkit.algorithms import CriticObjective, Needs, State
from rlkit.algorithms.grpo import GRPO
from rlkit.algorithms.objective import POLICY_LOSSES, KLState
from rlkit.errors import UserError
from rlkit.metrics import merge, metric_values
from rlkit.ops.masking import count_units, token_weights, weighted_sum
from rlkit.types import MicroBatch
from tests.algorithms.shipped import NAMES, algorithm
from tests.ops import oracle

CORRECTIONS = [
    *(("none", "token", 0.0), ("truncate", "token", 0.0), ("mask", "token", 0.0), ("mask", "token", 0.5)),
    *(("truncate", "sequence", 0.0), ("mask", "sequence", 0.0), ("mask", "sequence", 0.5)),
]
LENGTH = 12
OFFSETS = [0.0, 0.1, -0.1, 0.5, -0.5, 3.0, -3.0]


def grid(rng: random.Random, mask: Any, draw: Any) -> list[list[float]]:
    return [[draw() for _ in row] for row in mask]


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def losses_of(keys: Any, x: Any, held: Any, old: Any, rollout: Any, adv: Any, flags: Any) -> list[float]:
    """The policy loss of each token of a sequence; `held` is `x` where a gradient may not go."""
    ratios = [a - b if m else 0.0 for a, b, m in zip(x, old, flags, strict=True)]
    fixed = [a - b if m else 0.0 for a, b, m in zip(held, old, flags, strict=True)]
    whole = oracle.sequence_mean(ratios, flags)
    losses = {
        "clipped": lambda t: oracle.clipped(ratios[t], adv[t], keys.clip_low, keys.clip_high),
        "dual_clip": lambda t: oracle.dual_clipped(ratios[t], adv[t], keys.clip_low, keys.clip_high, keys.dual_clip),
        "gspo": lambda t: oracle.clipped(whole[t], adv[t], keys.clip_low, keys.clip_high),
        "cispo": lambda t: oracle.cispo(x[t], fixed[t], adv[t], keys.clip_low, keys.clip_high),
        "sapo": lambda t: oracle.sapo(ratios[t], adv[t], keys.sapo_positive, keys.sapo_negative),
        "dppo": lambda t: oracle.dppo(x[t], held[t], rollout[t], adv[t], keys.clip_low, keys.clip_high),
        "reinforce": lambda t: -math.exp(fixed[t]) * adv[t] * x[t],
    }
    one = oracle.find(losses, keys.loss)
    return [one(t) if m else 0.0 for t, m in enumerate(flags)]


WEIGHED = [(loss, *way) for loss in sorted(POLICY_LOSSES) for way in CORRECTIONS if (loss, way[0]) != ("dppo", "none")]


@pytest.mark.parametrize(("loss", "correction", "level", "floor"), WEIGHED)
def test_every_loss_with_all_additions_is_the_papers_with_its_gradient(loss: str, correction: str, level: str, floor: float) -> None:
    rng = random.Random(15)
    for estimator, reduction in (("k2", "token_mean"), ("k3", "sequence_mean"), ("k3", "fixed_length")):
        added = {"kl_coef": 0.3, "kl_estimator": estimator, "entropy_coef": 0.1, "clip_high": 0.28, "reduction": reduction}
        keys = algorithm("grpo", loss=loss, correction=correction, correction_level=level, correction_floor=floor, **added)
        mask = oracle.ragged(rng)
        rows, width = len(mask), len(mask[0])
        old = grid(rng, mask, lambda: -rng.expovariate(0.5))
        rollout = [[o + rng.gauss(0, 1) for o in row] for row in old]
        ref = [[o + rng.gauss(0, 0.5) for o in row] for row in old]
        new = [[o + rng.choice(OFFSETS) for o in row] for row in old]
        advantages = [[m * rng.choice([0.0, rng.gauss(0, 2)]) for m in row] for row in mask]
        entropy = grid(rng, mask, rng.random)
        weights = [
            oracle.corrected([o - r for o, r in zip(a, b, strict=True)], m, correction, level, 2.0, floor)
            for a, b, m in zip(new if loss == "dppo" else old, rollout, mask, strict=True)  # dppo: of the policy as it is now
        ]

        def loop(flat: list[float], keys: Any = keys, data: Any = (new, old, rollout, ref, advantages, entropy, mask, weights)) -> float:
            held, old, rollout, ref, advantages, entropy, mask, weights = data
            width = len(mask[0])
            x = [flat[i : i + width] for i in range(0, len(flat), width)]
            total = [losses_of(keys, *row) for row in zip(x, held, old, rollout, advantages, mask, strict=True)]
            estimate = getattr(oracle, keys.kl_estimator)
            for b, row in enumerate(total):
                for t in range(width):
                    row[t] = row[t] * weights[b][t] + 0.3 * estimate(x[b][t], ref[b][t]) - 0.1 * entropy[b][t]
            return oracle.reduced(total, mask, keys.reduction, LENGTH)

        at = tensor(new).requires_grad_()
        flags = torch.tensor(mask)
        losses, _ = keys.compute_policy_loss(
            MicroBatch(flags, at, tensor(entropy), tensor(old), tensor(rollout), tensor(ref), tensor(advantages))
        )
        assert losses.shape == (rows, width)  # law 2
        total = weighted_sum(losses, token_weights(flags, keys.reduction, count_units(flags), LENGTH))
        total.backward()
        start = [x for row in new for x in row]
        assert total.item() == pytest.approx(loop(start), rel=1e-10, abs=1e-10)
        assert at.grad is not None and at.grad.flatten().tolist() == pytest.approx(oracle.slopes(loop, start), rel=1e-6, abs=1e-6)


# -- first step --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", sorted(POLICY_LOSSES))
def test_at_ratio_one_every_loss_is_the_policy_gradient(loss: str) -> None:
    """-A a token, for GSPO the mean of its sequence's -A at each; nothing is cut."""
    new = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    rows = MicroBatch(torch.ones(1, 3).bool(), new, new.detach(), new.detach(), new.detach(), None, tensor([[2.0, 2.0, 2.0]]))
    losses, metrics = algorithm("grpo", loss=loss).compute_policy_loss(rows)
    losses.sum().backward()
    assert new.grad is not None and new.grad.flatten().tolist() == pytest.approx([-2.0] * 3, abs=1e-12)
    assert metric_values(metrics) == {
        "ratio/max_deviation": 0.0,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "sampling/importance_sampling_ratio/mean": 1.0,
        "sampling/importance_sampling_ratio/max": 1.0,
        "sampling/effective_sample_size": 1.0,
    }


def test_the_clips_of_a_sequence_are_counted_on_its_side() -> None:
    """Log ratios 1 and -0.2: their mean is 0.4, past the upper bound, so both tokens are held above; as tokens one would be free."""
    new = torch.tensor([[1.0, -0.2]], dtype=torch.float64)
    rows = MicroBatch(torch.ones(1, 2).bool(), new, new, new * 0, new * 0, None, new * 0 + 1)
    for loss, high, apart in (("gspo", 1.0, math.exp(0.4) - 1), ("clipped", 0.5, math.e - 1)):
        seen = metric_values(algorithm("grpo", loss=loss, correction="none").compute_policy_loss(rows)[1])
        assert seen == {"ratio/max_deviation": pytest.approx(apart), "clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": high}


def sampled(ratios: list[list[float]], **changes: Any) -> tuple[Tensor, Any]:
    """The loss and metrics of tokens of advantage 1 whose sampler gave them probability 1 / ratio of the trainer's."""
    old = torch.zeros(len(ratios), len(ratios[0]), dtype=torch.float64)
    rows = MicroBatch(torch.ones_like(old).bool(), old, old, old, -tensor(ratios).log(), None, torch.ones_like(old))
    return algorithm("grpo", **changes).compute_policy_loss(rows)


def test_the_sampler_is_corrected_and_watched_before_any_cap() -> None:
    """Ratios 1, 4: mean 5/2, largest 4. Held at 1, 2, of which (1 + 2)^2 / (2 (1 + 4)) of the tokens are effective; dropped, a half is."""
    losses, metrics = sampled([[1.0, 4.0]])
    assert losses.flatten().tolist() == pytest.approx([-1.0, -2.0], abs=1e-12)
    seen = metric_values(metrics)
    assert seen["sampling/importance_sampling_ratio/mean"] == pytest.approx(2.5) and seen["sampling/importance_sampling_ratio/max"] == 4.0
    assert seen["sampling/effective_sample_size"] == pytest.approx(9 / 10)
    losses, metrics = sampled([[1.0, 4.0]], correction="mask")
    assert losses.flatten().tolist() == pytest.approx([-1.0, 0.0], abs=1e-12)
    assert metric_values(metrics)["sampling/effective_sample_size"] == pytest.approx(1 / 2)
    low = sampled([[1.0, 0.25], [0.25, 0.5]], correction="mask", correction_floor=0.375)[0]
    assert low.flatten().tolist() == pytest.approx([-1.0, 0.0, 0.0, -0.5], abs=1e-12)
    whole = sampled([[1.0, 0.25], [0.25, 0.5]], correction="mask", correction_floor=0.375, correction_level="sequence")[0]
    assert whole.flatten().tolist() == pytest.approx([-0.5, -0.5, 0.0, 0.0], abs=1e-12)  # geometric means 1/2 and 0.354
    whole = sampled([[1.0, 9.0], [1.0, 2.25]], correction_level="sequence")[0]  # geometric means 3 and 1.5
    assert whole.flatten().tolist() == pytest.approx([-2.0, -2.0, -1.5, -1.5], abs=1e-12)
    assert sampled([[1.0, 4.0]], correction="none")[0].flatten().tolist() == pytest.approx([-1.0, -1.0], abs=1e-12)


def test_dppo_knows_the_policy_and_the_sampler_alone() -> None:
    """pi 3/4, 1/2, 1/4 and the sampler 1/2: weights 3/2, 1, 1/2, and the first is cut. Ratios and clips are of the sampler too."""
    new, rollout = torch.tensor([[0.75, 0.5, 0.25]]).double().log(), torch.full((1, 3), 0.5).double().log()
    for old in (new, new * 0):
        rows = MicroBatch(torch.ones(1, 3).bool(), new, new, old, rollout, None, torch.ones_like(new))
        losses, metrics = algorithm("grpo", loss="dppo", clip_low=0.3, clip_high=0.2).compute_policy_loss(rows)
        assert losses[0].tolist() == pytest.approx([0.0, math.log(2), math.log(4) / 2], abs=1e-12)
        assert metric_values(metrics) == pytest.approx(
            {
                "ratio/max_deviation": 0.5,
                "clip_ratio/low_mean": 0.0,
                "clip_ratio/high_mean": 1 / 3,
                "sampling/importance_sampling_ratio/mean": 1.0,
                "sampling/importance_sampling_ratio/max": 1.5,
                "sampling/effective_sample_size": 9 / (3 * 3.5),
            }
        )


def test_effective_samples_of_parts_are_those_of_the_whole() -> None:
    ratios = [[1.0, 4.0, 0.5, 0.25, 8.0, 1.5]]
    parts = merge(sampled([part])[1] for part in (ratios[0][:1], ratios[0][1:4], ratios[0][4:]))
    assert metric_values(parts) == pytest.approx(metric_values(sampled(ratios)[1]))
    rows = MicroBatch(torch.zeros(1, 2).bool(), *(torch.zeros(1, 2) for _ in range(4)), None, torch.zeros(1, 2))
    empty = algorithm("grpo").compute_policy_loss(rows)[1]
    assert math.isnan(metric_values(empty)["sampling/effective_sample_size"])
    assert metric_values(merge([empty, sampled(ratios)[1]])) == pytest.approx(metric_values(sampled(ratios)[1]))


def test_an_adapted_coefficient_takes_the_place_of_the_recipes() -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    rows = MicroBatch(torch.ones(1, 1).bool(), zero, zero, zero, zero, zero + 1, zero, kl_coef=0.5)
    losses, _ = algorithm("grpo", kl_coef=0.1, kl_target=6.0).compute_policy_loss(rows)
    assert losses.item() == pytest.approx(0.5 * (math.e - 2), abs=1e-12)


# -- what is refused, and what is asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("grpo", {"kl_estimator": "k1"}, "the gradient of k1 is zero in expectation"),
        ("rloo", {"kl_estimator": "k2"}, "biased"),
        ("rloo", {"kl_estimator": "k3"}, "not that of the KL"),
        ("grpo", {"kl_target": 6.0}, "set kl_coef above 0"),
        ("ppo", {"loss": "gspo"}, "differ from token to token"),
        ("reinforce_pp", {"loss": "gspo"}, "differ from token to token"),
        ("grpo", {"loss": "clip"}, "'clipped', 'dual_clip'"),
        ("grpo", {"dual_clip": 1.0}, "greater than 1"),
        ("grpo", {"correction_cap": 0.5}, "greater than or equal to 1"),
        ("grpo", {"correction": "mask", "correction_floor": 1.0}, "less than 1"),
        ("grpo", {"correction_floor": 0.5}, "set algorithm.correction=mask, or correction_floor=0"),
        ("grpo", {"loss": "dppo", "correction": "none"}, "leaves that weight out"),
        (
            "grpo",
            {"scale": "group_mean", "kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k1"},
            "which a KL in the reward makes 0 or less",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, changes: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        algorithm(name, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_go_with_the_rest_of_a_recipe(name: str) -> None:
    keys = algorithm(name)
    least = 2 if name in ("grpo", "rloo", "reinforce_pp_baseline") else 1
    assert keys.min_samples_per_prompt == least and keys.find_conflicts(False, least) == []
    assert ["incomparable" in reason for reason in keys.find_conflicts(True, least)] == [True]
    assert algorithm(name, correction="none").find_conflicts(True, 8) == []
    assert ["baseline is the group" in reason for reason in keys.find_conflicts(False, 0)] == [True]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_older_weights_need_a_correction(name: str) -> None:
    """Whatever the algorithm, where they can occur: today in the surplus of dynamic sampling, which is one step old."""
    uncorrected = algorithm(name, correction="none")
    for max_lag, words in ((1, "up to 1 step older"), (3, "up to 3 steps older")):
        [reason] = uncorrected.find_conflicts(False, 8, max_lag)
        assert words in reason and "algorithm.correction=none leaves that uncorrected; set algorithm.correction=truncate or mask" in reason
        assert algorithm(name).find_conflicts(False, 8, max_lag) == [] and uncorrected.find_conflicts(False, 8) == []


class Unready(GRPO):
    """Asks for a critic that it has no keys for."""

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), values=True)


class Ready(CriticObjective, GRPO):
    """GRPO beside a critic."""


def test_an_algorithm_with_a_critic_brings_its_keys() -> None:
    keys = algorithm("grpo").model_dump()
    assert ["CriticObjective" in reason for reason in Unready(**keys).find_conflicts(False, 2)] == [True]
    with pytest.raises(ValidationError, match="critic_lr"):
        Ready(**keys)
    ready = Ready(**keys, value_clip=0.2, critic_lr=1e-3, critic_warmup_steps=1)
    assert ready.find_conflicts(False, 2) == [] and ready.needs(1) == Needs(values=True) and not ready.inert_without_advantage


def test_a_critic_leaves_the_policy_a_step() -> None:
    """2 steps of 3 updates are 6. Of 3 steps one is left, of 2 none; a run of no step is an evaluation alone."""
    keys = algorithm("ppo", critic_warmup_steps=2)
    assert keys.count_critic_warmup_updates(3, 3) == 6 and keys.count_critic_warmup_updates(0, 3) == 6
    with pytest.raises(UserError, match=r"of steps=2 none is left for the policy; set algorithm\.critic_warmup_steps to at most 1"):
        keys.count_critic_warmup_updates(2, 3)
    assert algorithm("ppo", critic_warmup_steps=0).count_critic_warmup_updates(1, 3) == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_each_needs(name: str) -> None:
    """No pass before a single update on policy, but for a KL of the whole step, or a teacher's signal; a reference only for its KL."""
    taught = name == "opd"
    more = {"greedy": name == "remax", "values": name == "ppo", "teacher": taught, "rewards": not taught}
    assert algorithm(name).needs(1) == Needs(taught, False, **more) and algorithm(name).needs(2) == Needs(True, False, **more)
    for changes, before in (
        ({"kl_in": "loss", "kl_estimator": "k2"}, False),
        ({"kl_in": "reward", "kl_estimator": "k1"}, True),
        ({"kl_in": "loss", "kl_estimator": "k2", "kl_target": 6.0}, True),
    ):
        assert algorithm(name, kl_coef=0.1, **changes).needs(1) == Needs(before or taught, True, **more)


@pytest.mark.parametrize("name", NAMES)
def test_who_may_leave_samples_out(name: str) -> None:
    """Not with a KL or an entropy in the loss, and not where the whole batch or a critic has a part in every sample."""
    alone = name in ("grpo", "rloo", "remax", "opd")
    assert algorithm(name).inert_without_advantage is alone
    assert algorithm(name, kl_coef=0.1, kl_in="reward", kl_estimator="k1").inert_without_advantage is alone
    assert not algorithm(name, kl_coef=0.1, kl_in="loss", kl_estimator="k2").inert_without_advantage
    assert not algorithm(name, entropy_coef=0.1).inert_without_advantage


def test_the_first_state() -> None:
    assert algorithm("grpo").init_state() == State() and algorithm("grpo", kl_coef=0.1, kl_target=6.0).init_state() == KLState(0.1)
