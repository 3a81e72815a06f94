"""GRPO against loops written from the paper, and the whole update against every way of cutting it up."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.algorithms import Needs, State
from rlkit.algorithms.grpo import GRPO
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.errors import UserError
from rlkit.metrics import metric_values
from rlkit.ops.masking import count_units, token_weights, weighted_sum
from rlkit.types import Credit, Group, MicroBatch, Signals
from rlkit.updates.collate import collate
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.online_update import OnlineUpdater
from rlkit.updates.optimizer_step import UpdateCount
from tests.algorithms.shipped import algorithm
from tests.algorithms.tiny import Policy, Ranks, groups_of, together
from tests.ops import oracle

PLAIN: GRPO = algorithm("grpo", clip_high=0.28, correction="none")
FULL = PLAIN.model_copy(update={"kl_coef": 0.3, "entropy_coef": 0.1})
REWARDS: list[list[float | None]] = [
    [1.0, 0.0, 0.0, 1.0],
    [0.3, 1.0, -2.0, None],
    [0.5, 0.5, 0.5, 0.5],
    [None, 1.0, None, None],
    [0.1 + 0.2, 0.3, 0.3, 2.0],
    [7.0, 1.0, 2.0, 3.0],
]
FIXED_LENGTH = 12


# -- the loss ----------------------------------------------------------------------------------------------------------------------


def rows_of(mask: list[list[bool]], new: Tensor, entropy: Tensor, old: Tensor, ref: Tensor, advantages: Tensor) -> MicroBatch:
    flags = torch.tensor(mask)
    return MicroBatch(flags, new, entropy, old, old, ref, advantages.unsqueeze(-1) * flags)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("algorithm", [PLAIN, FULL])
def test_the_loss_is_the_papers_with_its_gradient(algorithm: GRPO, reduction: Any) -> None:
    rng = random.Random(7)
    for round_ in range(12):
        mask = oracle.ragged(rng)
        rows, width = len(mask), len(mask[0])
        size = rows * width
        old = [-rng.expovariate(0.5) for _ in range(size)]
        new = [o + rng.choice([0.0, 0.1, -0.1, 0.5, -0.5, 3.0 if round_ % 2 else -3.0]) for o in old]
        ref = [o + rng.gauss(0, 0.5) for o in old]
        entropy = [rng.random() for _ in range(size)]
        advantages = [rng.choice([0.0, rng.gauss(0, 2)]) for _ in range(rows)]

        def loop(x: list[float], mask: Any = mask, old: Any = old, ref: Any = ref, adv: Any = advantages, width: int = width) -> float:
            half, losses = len(x) // 2, []
            for i in range(half):
                loss = oracle.clipped(x[i] - old[i], adv[i // width], algorithm.clip_low, algorithm.clip_high)
                losses.append(loss + algorithm.kl_coef * oracle.k3(x[i], ref[i]) - algorithm.entropy_coef * x[half + i])
            return oracle.reduced([losses[i : i + width] for i in range(0, half, width)], mask, reduction, FIXED_LENGTH)

        def grid(numbers: list[float], width: int = width) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64).view(-1, width)

        at = torch.tensor(new + entropy, dtype=torch.float64, requires_grad=True)
        weights = torch.tensor(advantages, dtype=torch.float64)
        given = rows_of(mask, at[:size].view(rows, width), at[size:].view(rows, width), grid(old), grid(ref), weights)
        losses, _ = algorithm.compute_policy_loss(given)
        assert losses.shape == (rows, width)  # law 2: never reduced
        total = weighted_sum(losses, token_weights(given.mask, reduction, count_units(given.mask), FIXED_LENGTH))
        total.backward()
        assert total.item() == pytest.approx(loop(new + entropy), rel=1e-10, abs=1e-10)
        assert at.grad is not None and at.grad.tolist() == pytest.approx(oracle.slopes(loop, new + entropy), rel=1e-6, abs=1e-6)


def test_clips_are_counted_by_side() -> None:
    """Six tokens count. Low: one of a bad sample held. High: two of a good one held. A good one below, a bad one above: not held."""
    low, high, near = -1.0, 1.0, 0.05
    ratios = torch.tensor([[high, high, low], [low, high, near], [high, low, high]])
    mask = torch.tensor([[True, True, True], [True, True, True], [False, False, False]])
    rows = MicroBatch(
        mask, ratios, torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3, 3), None, torch.tensor([[1.0], [-1.0], [1.0]]) * mask
    )
    seen = metric_values(PLAIN.compute_policy_loss(rows)[1])
    assert seen == {
        "ratio/max_deviation": pytest.approx(math.e - 1),
        "clip_ratio/low_mean": pytest.approx(1 / 6),
        "clip_ratio/high_mean": pytest.approx(2 / 6),
    }


def test_only_what_counts_is_watched() -> None:
    mask = torch.tensor([[True, False]])
    zeros, odd = torch.zeros(1, 2), torch.tensor([[0.0, -200.0]])
    rows = MicroBatch(mask, odd, odd, zeros, zeros, torch.tensor([[1.0, -40.0]]), zeros)
    losses, metrics = FULL.compute_policy_loss(rows)
    assert metric_values(metrics)["kl"] == pytest.approx(2.718281828 - 2, abs=1e-6)  # e^1 - 1 - 1
    assert metric_values(metrics)["clip_ratio/high_mean"] == 0.0 and torch.isfinite(losses).all()


def test_what_it_needs() -> None:
    """A single update is on policy; clipping has work from the second on. A reference only for its KL."""
    assert PLAIN.needs(1) == Needs(False, False) and PLAIN.needs(2) == Needs(True, False) and FULL.needs(1) == Needs(False, True)
    assert PLAIN.inert_without_advantage and not FULL.inert_without_advantage
    assert not PLAIN.model_copy(update={"entropy_coef": 0.1}).inert_without_advantage
    assert PLAIN.min_samples_per_prompt == 2


# -- advantages --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "group_mean", "none"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_advantages_are_the_papers_however_groups_are_split(scale: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.updates.collate.balance_samples", lambda sizes, ranks: [i % ranks for i in range(len(sizes))])
    algorithm = PLAIN.model_copy(update={"scale": scale})
    rewards = REWARDS if scale != "group_mean" else [[None if r is None else abs(r) for r in row] for row in REWARDS]
    groups = groups_of(rewards)
    flat = [r for row in rewards for r in row]
    numbers = [g for g, row in enumerate(rewards) for _ in row]
    wanted = oracle.maximum_likelihood(flat, numbers) if scale == "group_mean" else oracle.advantages(flat, numbers, scale == "group_std")
    if scale == "batch_std":  # 2508.08221: one std, of all rewards of the step
        wanted = [a / statistics.stdev(r for r in flat if r is not None) for a in wanted]

    def work(ranks: Ranks) -> tuple[Any, Credit, dict[str, float]]:
        _, batch = collate(groups[ranks.rank :: world], ranks, 1, 0)  # type: ignore[arg-type]
        credit, state, metrics = algorithm.compute_advantages(batch, Signals(), State(), ranks)
        assert state == State()
        return batch, credit, metric_values(metrics)

    seen = []
    for batch, credit, metrics in together(world, work):
        assert metrics == {"frac_reward_zero_std": pytest.approx(2 / 6)}
        for row, i in enumerate(batch.index.tolist()):
            seen.append(i)
            grid = credit.advantages[row]
            assert grid[~batch.mask[row]].abs().sum() == 0.0
            assert grid[batch.mask[row]].tolist() == pytest.approx([wanted[i]] * int(batch.mask[row].sum()), rel=1e-7, abs=1e-7)
    assert sorted(seen) == list(range(24))
    if world > 1:  # the test is about groups that are split, so some must be
        owners = [set(batch.group.tolist()) for batch, _, _ in together(world, work)]
        assert owners[0] & owners[1]


@pytest.mark.parametrize("world", [1, 2])
def test_a_mean_of_rewards_below_zero_is_refused_on_all_ranks(world: int) -> None:
    algorithm = PLAIN.model_copy(update={"scale": "group_mean"})

    def work(ranks: Ranks) -> str:
        _, batch = collate(groups_of([[1.0, 0.0], [0.5, -0.25], [0.0, None]])[ranks.rank :: world], ranks, 1, 0)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"a sample has the reward -0\.25, below 0; make the sum of the rewards 0 or more") as raised:
            algorithm.compute_advantages(batch, Signals(), State(), ranks)
        return str(raised.value)

    assert len(set(together(world, work))) == 1


@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_equal_rewards_have_no_std_to_divide_by(scale: str) -> None:
    keys = PLAIN.model_copy(update={"scale": scale})

    def work(ranks: Ranks) -> Credit:
        _, batch = collate(groups_of([[0.1] * 3] * 7), ranks, 1, 0)  # type: ignore[arg-type]
        return keys.compute_advantages(batch, Signals(), State(), ranks)[0]

    assert not together(1, work)[0].advantages.any()


# -- the whole update --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of cutting the same work up."""

    world: int = 1
    budget: int = 10_000
    padding: int = 0
    order: Callable[[list[Group]], list[Group]] = list


def shuffled(groups: list[Group]) -> list[Group]:
    """Groups, and the samples in each, in another order; the number says which group it is."""
    rng = random.Random(8)
    mixed = [replace(g, samples=tuple(rng.sample(g.samples, len(g.samples)))) for g in groups]
    return rng.sample(mixed, len(mixed))


def learning(algorithm: Any, ranks: Ranks, minibatches: int, **changes: Any) -> OnlineUpdater:
    """What an update of the small policy needs."""
    given: dict[str, Any] = {
        "policy": Policy(ranks),
        "reference": Policy(ranks, seed=1),
        "teacher": Policy(ranks, seed=2),
        "algorithm": algorithm,
        "schedule": Schedule(0.2, "constant", 0, 10),
        "logprob_check": LogprobCheck(None),
        "ranks": ranks,
        "passes": 1,
        "minibatches": minibatches,
        "tokens_per_micro_batch": 10_000,
        "fixed_length": FIXED_LENGTH,
        "max_skipped_updates": 3,
    }
    return OnlineUpdater(**{**given, **changes})


def learn(
    algorithm: Any, way: Way, minibatches: int = 1, passes: int = 1, rewards: Any = REWARDS
) -> tuple[list[Tensor], Any, list[Policy]]:
    """The gradient of each update, the metrics, and the policies of the ranks."""
    groups = groups_of(rewards)

    def work(ranks: Ranks) -> tuple[Policy, Any]:
        policy = Policy(ranks, padding=way.padding)
        run = learning(algorithm, ranks, minibatches, policy=policy, passes=passes, tokens_per_micro_batch=way.budget)
        _, batch = collate(way.order(groups[ranks.rank :: way.world]), ranks, minibatches, 0)  # type: ignore[arg-type]
        signals, _ = run.observe(batch)
        credit, _, _ = algorithm.compute_advantages(batch, signals, State(), ranks)
        metrics, count = run.update(batch, signals, credit, UpdateCount())
        assert count == UpdateCount(passes * minibatches)
        return policy, metric_values(metrics)

    done = together(way.world, work)
    policies = [policy for policy, _ in done]
    assert all(torch.equal(a, b) for p in policies for a, b in zip(p.gradients, policies[0].gradients, strict=True))
    return policies[0].gradients, done[0][1], policies


def difference(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative L2 distance of two lists of gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True))


WAYS = {
    "order": Way(order=shuffled),
    "padding": Way(padding=7),
    "micro-batches of one": Way(budget=1),
    "small micro-batches": Way(budget=30),
    "two ranks": Way(world=2),
    "three ranks and everything": Way(world=3, budget=25, padding=3, order=shuffled),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "fixed_length"])
@pytest.mark.parametrize("algorithm", [PLAIN, FULL], ids=["plain", "full"])
def test_no_cut_changes_a_gradient(algorithm: GRPO, reduction: str, way: Way) -> None:
    algorithm = algorithm.model_copy(update={"reduction": reduction})
    gradients, metrics, _ = learn(algorithm, way)
    wanted, numbers, _ = learn(algorithm, Way())
    assert len(wanted) == 1 and wanted[0].norm() > 1e-3
    assert difference(gradients, wanted) < 1e-12
    assert metrics == pytest.approx(numbers, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("way", [WAYS["order"], WAYS["small micro-batches"], WAYS["three ranks and everything"]])
def test_nor_over_several_updates(way: Way) -> None:
    """Two passes of three minibatches: the ratio is no longer 1, so old log-probs, clips and the learning of before all count."""
    gradients, _, _ = learn(FULL, way, minibatches=3, passes=2)
    wanted, numbers, _ = learn(FULL, Way(), minibatches=3, passes=2)
    assert len(wanted) == 6 and numbers["clip_ratio/low_mean"] + numbers["clip_ratio/high_mean"] > 0.0
    assert difference(gradients, wanted) < 1e-12


def test_an_update_sees_its_minibatch_and_a_pass_sees_all() -> None:
    """Three minibatches of two groups of four, twice."""
    _, _, (policy,) = learn(FULL, Way(), minibatches=3, passes=2)
    assert policy.calls == [8] * 6


def test_the_gradient_is_that_of_the_loops() -> None:
    """The whole path once more, from the paper: central differences of the loss as loops compute it, weight by weight."""
    groups = groups_of(REWARDS)
    samples = [s.sample for g in groups for s in g.samples]
    flat = [r for row in REWARDS for r in row]
    advantages = oracle.advantages(flat, [g for g, row in enumerate(REWARDS) for _ in row], True)
    mask = [[*s.mask.tolist(), *[False] * (9 - len(s.tokens))] for s in samples]
    policy = together(1, lambda ranks: Policy(ranks))[0]
    weights = list(policy.model.parameters())
    with policy.enable_grad():
        start = policy.logprobs(samples, 9)[0].detach()

    def loop(x: list[float]) -> float:
        with torch.no_grad():
            for weight, numbers in zip(weights, torch.tensor(x, dtype=torch.float64).split([w.numel() for w in weights]), strict=True):
                weight.copy_(numbers.view_as(weight))
        with policy.enable_grad():
            ratios = (policy.logprobs(samples, 9)[0] - start).tolist()
        losses = [[oracle.clipped(r, a, 0.2, 0.28) for r in row] for row, a in zip(ratios, advantages, strict=True)]
        return oracle.reduced(losses, mask, "sequence_mean", FIXED_LENGTH)

    at = torch.cat([w.detach().flatten() for w in weights]).tolist()
    gradients, _, _ = learn(PLAIN, Way(world=2, budget=40))
    assert gradients[0].tolist() == pytest.approx(oracle.slopes(loop, at), rel=1e-6, abs=1e-6)


class Asking(GRPO):
    """GRPO that always computes old log-probs and leaves no sample out."""

    @property
    def inert_without_advantage(self) -> bool:
        return False

    def needs(self, updates_per_step: int) -> Needs:
        return Needs(old_logprobs=True)


def test_what_is_left_out_changes_nothing() -> None:
    """No pass for old log-probs, no work on samples without advantage: the same gradient, from fewer rows."""
    lazy, _, (few,) = learn(PLAIN, Way(budget=1))
    eager, _, (all_,) = learn(Asking(**PLAIN.model_dump()), Way(budget=1))
    assert difference(lazy, eager) < 1e-6  # old log-probs are kept in float32
    assert sum(all_.calls) == 24 and sum(few.calls) == 3 + 4 + 4 + 4 - 1  # two groups alike, one reward failed, one sample masked


def test_ranks_stay_in_lockstep() -> None:
    """Four samples have a signal, on three ranks with one sample a micro-batch: two passes each, idle where work has run out."""
    alone: list[list[float | None]] = [[1.0, 0.0, 2.0, 3.0]]
    _, _, policies = learn(PLAIN, Way(world=3, budget=1), rewards=alone)
    assert sorted(p.calls for p in policies) == [[1, 0], [1, 0], [1, 1]]


def test_a_step_without_any_signal_is_no_update() -> None:
    gradients, metrics, policies = learn(PLAIN, Way(world=2), rewards=[[1.0, 1.0], [0.0, 0.0]])
    assert gradients == [] and metrics == {"updates_without_signal": 1.0} and all(p.calls == [] for p in policies)


def test_the_first_update_starts_at_ratio_one() -> None:
    """With a KL to a reference that is the policy itself, the loss is that of a policy gradient: minus the mean advantage."""
    _, metrics, _ = learn(PLAIN, Way())
    flat = [r for row in REWARDS for r in row]
    advantages = oracle.advantages(flat, [g for g, row in enumerate(REWARDS) for _ in row], True)
    counted = [bool(s.sample.mask.any()) for g in groups_of(REWARDS) for s in g.samples]
    wanted = -sum(a for a, c in zip(advantages, counted, strict=True) if c) / 24
    assert metrics["loss"] == pytest.approx(wanted, abs=1e-7) and metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0.0
