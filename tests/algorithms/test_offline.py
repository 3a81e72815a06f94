"""Each offline algorithm against loops over plain floats, and its whole update against every way of cutting it up."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlkit.data.offline_rows import Demonstration, Pair, RatedCompletion
from rlkit.metrics import Mean, metric_values, wilson_interval
from rlkit.ops.masking import count_units, token_weights, uniform_weights, weighted_sum
from rlkit.trainers.offline import add_margins
from rlkit.types import OfflineMicroBatch, Sample
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.offline_update import OfflineMinibatch, OfflineUpdater
from rlkit.updates.optimizer_step import UpdateCount
from rlkit.updates.reference_cache import ReferenceLogprobs, hash_sample, load_or_compute, rekey_by_prompt
from rlkit.updates.units import UNITS, Unit
from tests.algorithms.shipped import algorithm
from tests.algorithms.test_grpo import WAYS, Way, difference
from tests.algorithms.tiny import VOCABULARY, Policy, Ranks, together
from tests.ops import oracle

ALGORITHMS = {
    "sigmoid": algorithm("dpo", beta=0.3),
    "smoothed": algorithm("dpo", loss="smoothed", beta=0.3, label_smoothing=0.1),
    "hinge": algorithm("dpo", loss="hinge", beta=0.3),
    "ipo": algorithm("dpo", loss="ipo", beta=0.3),
    "robust": algorithm("dpo", loss="robust", beta=0.3, label_smoothing=0.1),
    "simpo": algorithm("dpo", loss="simpo", beta=2.0, simpo_gamma=0.5),
    "orpo": algorithm("dpo", loss="orpo", beta=0.3),
    "kto": algorithm("kto", beta=0.3, undesirable_weight=1.3),
    "sft": algorithm("sft"),
    "reward_model": algorithm("reward_model"),
}


OTHER = 3  # seed of a model that finds other rows' completions less likely than that of seed 0 does


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_odds(x: float) -> float:
    return x - math.log(1 - math.exp(x))


def of_pair(name: str, chosen: float, rejected: float) -> float:
    """The loss of a pair from log-ratios, mean log-probs or scores, as the papers write it."""
    h = chosen - rejected
    losses = {
        "sigmoid": lambda: -math.log(s(0.3 * h)),
        "smoothed": lambda: -0.9 * math.log(s(0.3 * h)) - 0.1 * math.log(s(-0.3 * h)),
        "hinge": lambda: max(0.0, 1 - 0.3 * h),
        "ipo": lambda: (h - 1 / 0.6) ** 2,
        "robust": lambda: (-0.9 * math.log(s(0.3 * h)) + 0.1 * math.log(s(-0.3 * h))) / 0.8,
        "simpo": lambda: -math.log(s(2 * h - 0.5)),
        "orpo": lambda: -chosen - 0.3 * math.log(s(log_odds(chosen) - log_odds(rejected))),
        "reward_model": lambda: -math.log(s(h)),
    }
    return oracle.find(losses, name)()


def of_minibatch(name: str, said: oracle.Grid, mask: oracle.Flags, reference: Sequence[float], good: Sequence[bool], z: float) -> float:
    """One number of a minibatch, by loops."""
    sums = [math.fsum(x for x, m in zip(row, flags, strict=True) if m) for row, flags in zip(said, mask, strict=True)]
    lengths = [max(sum(flags), 1) for flags in mask]
    if name == "sft":
        return -math.fsum(sums) / max(sum(map(sum, mask)), 1)
    if name == "kto":
        x = [a - b for a, b in zip(sums, reference, strict=True)]
        return math.fsum(1 - s(0.3 * (v - z)) if g else 1.3 * (1 - s(0.3 * (z - v))) for v, g in zip(x, good, strict=True)) / len(x)
    if name in ("simpo", "orpo"):
        x = [a / n for a, n in zip(sums, lengths, strict=True)]
    else:
        x = sums if name == "reward_model" else [a - b for a, b in zip(sums, reference, strict=True)]
    return math.fsum(of_pair(name, x[i], x[i + 1]) for i in range(0, len(x), 2)) / (len(x) // 2)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("seed", range(6))
def test_a_loss_is_the_papers_with_its_gradient(name: str, seed: int) -> None:
    """Three pairs, ragged: one token, holes, far from the reference; a completion none of whose tokens count."""
    keys, rng = ALGORITHMS[name], random.Random(seed)
    width = 1 if name == "reward_model" else 5
    mask = [[True]] * 6 if width == 1 else oracle.ragged(rng, rows=6, longest=width)
    if name == "orpo":
        mask = [[True, *row[1:]] for row in mask]  # the odds of an empty completion, certain, have no slope
    said = [[-rng.expovariate(0.5) - 1e-3 for _ in row] for row in mask]
    if name not in ("simpo", "orpo"):  # far out their slopes are beyond what differences can show
        said[seed] = [-40.0 for _ in said[seed]]
    reference, good, z = [rng.gauss(-4, 3) for _ in mask], [rng.random() < 0.5 for _ in mask], 0.4
    at = torch.tensor(said, dtype=torch.float64, requires_grad=True)
    flags = torch.tensor(mask)
    rows = OfflineMicroBatch(
        flags, at, torch.tensor(reference, dtype=torch.float64), torch.tensor(good), torch.tensor(z, dtype=torch.float64)
    )
    losses, _ = keys.compute_losses(rows)
    token = keys.unit == "token"
    weights = token_weights(flags, "token_mean", count_units(flags), 1) if token else uniform_weights(losses, len(losses))
    total = weighted_sum(losses, weights)
    total.backward()

    def loop(flat: list[float]) -> float:
        return of_minibatch(name, [flat[i * width : (i + 1) * width] for i in range(6)], mask, reference, good, z)

    flat = [x for row in said for x in row]
    assert total.item() == pytest.approx(loop(flat), rel=1e-10, abs=1e-10)
    assert at.grad is not None and at.grad.flatten().tolist() == pytest.approx(oracle.slopes(loop, flat), rel=1e-6, abs=1e-6)


def test_what_is_watched_of_pairs() -> None:
    """Pair one: 0.5 (-1 + 3) - 0.5 (-2 + 2) = 1 above; pair two: a tie, half right."""
    said = torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0]])
    keys = algorithm("dpo", beta=0.5)
    _, metrics = keys.compute_losses(OfflineMicroBatch(torch.ones(4, 1).bool(), said, torch.tensor([-3.0, -2.0, -3.0, -4.0]).double()))
    assert add_margins(metric_values(metrics)) == {
        "rewards/chosen": 0.5,
        "rewards/rejected": 0.0,
        "rewards/accuracies": 0.75,
        "rewards/margins": 0.5,
        "logps/chosen": -2.0,
        "logps/rejected": -3.0,
    }


def test_what_is_watched_of_rated_completions() -> None:
    """z = 1: x = 2 and good, right; x = -1 and bad, right; x = 0.5 and good, wrong; x = 1, a tie."""
    said = torch.tensor([[2.0], [-1.0], [0.5], [1.0]])
    good = torch.tensor([True, False, True, False])
    rows = OfflineMicroBatch(torch.ones(4, 1).bool(), said, torch.zeros(4).double(), good, torch.tensor(1.0).double())
    seen = add_margins(metric_values(algorithm("kto", beta=0.2).compute_losses(rows)[1]))
    assert seen["rewards/accuracies"] == 0.625 and seen["kl"] == 1.0
    assert seen["rewards/margins"] == pytest.approx(0.2 * (1.25 - 0.0))


def test_what_it_asks_for() -> None:
    """A reference for ratios alone; a baseline for KTO alone."""
    assert {name for name, keys in ALGORITHMS.items() if keys.reference} == {"sigmoid", "smoothed", "hinge", "ipo", "robust", "kto"}
    assert {name for name, keys in ALGORITHMS.items() if keys.baseline} == {"kto"}
    assert {name for name, keys in ALGORITHMS.items() if keys.learner == "reward_model"} == {"reward_model"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "robust", "label_smoothing": 0.5}, "nothing can be learned from them"),
        ({"loss": "smoothed", "label_smoothing": 0.7}, "swap chosen and rejected"),
        ({"label_smoothing": 0.1}, "algorithm.label_smoothing has no effect with algorithm.loss=sigmoid"),
        ({"simpo_gamma": 0.5}, "algorithm.simpo_gamma has no effect with algorithm.loss=sigmoid"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        algorithm("dpo", **changes)


# -- the whole update --------------------------------------------------------------------------------------------------------------


def items_of(kind: str, count: int = 6, seed: int = 0) -> list[Any]:
    """Ragged random rows, one of a single token; every third prompt is that of the row before."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(low, high)))

    prompts = [tokens(1, 5) for _ in range(count)]
    prompts = [prompts[i - 1] if i % 3 == 2 else prompts[i] for i in range(count)]
    if kind == "pairs":
        return [Pair(i, 0, p, tokens(1, 1) if i == 0 else tokens(1, 9), tokens(1, 9)) for i, p in enumerate(prompts)]
    if kind == "rated":
        return [RatedCompletion(i, 0, p, tokens(1, 9), i % 2 == 0) for i, p in enumerate(prompts)]
    return [Demonstration(i, 0, p, tokens(1, 9)) for i, p in enumerate(prompts)]


@dataclass
class Source(Policy):
    """The policy of tiny.py, and its weights."""

    def __init__(self, ranks: Ranks, seed: int = 0, padding: int = 0) -> None:
        super().__init__(ranks, seed, padding)
        self.samples_for_reference = 0

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        self.samples_for_reference += 0 if self._learns else len(samples)
        return super().logprobs(samples, width)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()


def reading_of(keys: Any, ranks: Ranks, policy: Any, way: Way, minibatches: int = 1) -> OfflineUpdater:
    def said(samples: Sequence[Sample], width: int) -> Tensor:
        logs: Tensor = policy.logprobs(samples, width)[0]
        return logs.sum(-1, keepdim=True) if keys.learner == "reward_model" else logs

    return OfflineUpdater(policy, said, keys, Schedule(0.2, "constant", 0, 10), ranks, 1, minibatches, way.budget, 3)  # type: ignore[arg-type]


def units_of(keys: Any, seed: int = 0) -> list[Unit]:
    return [UNITS[keys.reads](item) for item in items_of(keys.reads, seed=seed)]


def told_by(policy: Any, keys: Any, *minibatches: list[Unit]) -> ReferenceLogprobs:
    """What a model says of all that the algorithm asks a reference for, in float64."""
    reading = reading_of(keys, policy.ranks, policy, Way())
    samples = [sample for units in minibatches for sample in OfflineMinibatch(reading, units, None).samples_for_reference()]
    with policy.enable_grad(), torch.no_grad():
        numbers = [float(policy.logprobs([x], len(x.tokens))[0].sum()) for x in samples]
    unique = dict(zip(map(hash_sample, samples), numbers, strict=True))
    return ReferenceLogprobs(list(unique), list(unique.values()))


def learn(keys: Any, way: Way, other: int = 1) -> tuple[list[Tensor], dict[str, float], list[Any]]:
    """The gradients of three minibatches of two units, one after the other, the metrics of the last, and the policies of the ranks."""
    units = units_of(keys)
    if way.order is not list:
        units = [units[i] for i in (1, 0, 3, 2, 5, 4)]  # other places in the same minibatch

    def work(ranks: Ranks) -> Any:
        policy = Source(ranks, padding=way.padding)
        reading, count = reading_of(keys, ranks, policy, way, minibatches=3), UpdateCount()
        reference = told_by(Source(ranks, seed=other), keys, *reading.split_minibatches(units)) if keys.reference else None
        for minibatch in reading.split_minibatches(units):
            metrics, count = reading.update(minibatch, reference, count)
        assert count == UpdateCount(3)
        return policy, metric_values(metrics)

    done = together(way.world, work)
    assert all(seen == done[0][1] for _, seen in done)
    return done[0][0].gradients, done[0][1], [policy for policy, _ in done]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_cut_changes_a_gradient(name: str, way: Way) -> None:
    gradients, metrics, _ = learn(ALGORITHMS[name], way)
    wanted, numbers, _ = learn(ALGORITHMS[name], Way())
    assert len(wanted) == 3 and min(g.norm() for g in wanted) > 1e-4
    assert difference(gradients, wanted) < 1e-12
    assert metrics == pytest.approx(numbers, rel=1e-6, abs=1e-9)


def test_a_pair_is_never_split_and_ranks_stay_in_lockstep() -> None:
    """Three ranks, minibatches of two pairs, one pair a micro-batch: one rank idles in each."""
    _, _, policies = learn(ALGORITHMS["sigmoid"], Way(world=3, budget=1))
    assert sorted(tuple(p.calls) for p in policies) == sorted([(2, 2, 2), (2, 2, 2), (0, 0, 0)])


def test_a_mismatched_completion_belongs_to_another_prompt() -> None:
    """Half the rows further on, or the next after it with another prompt; whatever the order in which the rows come."""
    ranks = together(1, lambda ranks: ranks)[0]
    rows = [RatedCompletion(i, 0, (i % 2,), (5 + i,), True) for i in range(4)]  # prompts 0, 1, 0, 1
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        units = [UNITS["rated"](rows[i]) for i in order]
        asked = list(OfflineMinibatch(reading_of(ALGORITHMS["kto"], ranks, None, Way()), units, None).samples_for_reference())[4:]
        assert {(s.key.prompt, s.prompt, s.tokens.item()) for s in asked} == {(0, (0,), 8), (1, (1,), 5), (2, (0,), 6), (3, (1,), 7)}


def test_the_gradient_is_that_of_the_loops() -> None:
    """KTO from the weights to the loss, its baseline of mismatched rows held as a number: central differences, weight by weight."""
    keys = ALGORITHMS["kto"]
    units = units_of(keys)[:2]
    policy, other = together(1, lambda ranks: (Source(ranks), Source(ranks, seed=OTHER)))[0]
    samples = [u.samples[0] for u in units]
    reference = told_by(other, keys, units)
    crossed = list(OfflineMinibatch(reading_of(keys, policy.ranks, policy, Way()), units, None).samples_for_reference())[2:]
    assert [(c.prompt, c.tokens.tolist()) for c in crossed] == [
        (samples[0].prompt, samples[1].tokens.tolist()),
        (samples[1].prompt, samples[0].tokens.tolist()),
    ]

    def sums(of: list[Sample]) -> list[float]:
        with policy.enable_grad(), torch.no_grad():
            return [float(policy.logprobs([x], len(x.tokens))[0].sum()) for x in of]

    z = max(0.0, math.fsum(a - b for a, b in zip(sums(crossed), reference.look_up(crossed).tolist(), strict=True)) / 2)
    assert z > 0.0
    weights = list(policy.model.parameters())
    at = torch.cat([w.detach().flatten() for w in weights]).tolist()

    def loop(flat: list[float]) -> float:
        with torch.no_grad():
            for weight, numbers in zip(weights, torch.tensor(flat, dtype=torch.float64).split([w.numel() for w in weights]), strict=True):
                weight.copy_(numbers.view_as(weight))
        grid = [[x] for x in sums(samples)]
        return of_minibatch("kto", grid, [[True]] * 2, reference.look_up(samples).tolist(), [True, False], z)

    wanted = oracle.slopes(loop, at)
    gradients, _, _ = learn(keys, Way(world=2), OTHER)
    assert gradients[0].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_what_starts_at_its_reference() -> None:
    """Before the first update: ln 2 for DPO, margins 0, no KL."""
    for name, start in (("sigmoid", math.log(2)), ("smoothed", math.log(2)), ("hinge", 1.0), ("kto", (0.5 + 1.3 * 0.5) / 2)):
        keys = ALGORITHMS[name]
        policy = together(1, Source)[0]
        units = units_of(keys)
        reading = reading_of(keys, policy.ranks, policy, Way())
        metrics, _ = reading.update(units, told_by(policy, keys, units), UpdateCount())
        seen = add_margins(metric_values(metrics))
        assert seen["loss"] == pytest.approx(start, abs=1e-6) and seen["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


# -- the reference -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 3])
def test_the_reference_is_computed_once_by_the_policy_as_it_is(world: int, tmp_path: Path) -> None:
    keys = ALGORITHMS["kto"]
    units = units_of(keys)

    def work(ranks: Ranks, seed: int = 0, rows: int = 6, budget: int = 40) -> Any:
        ranks.main = ranks.rank == 0  # type: ignore[attr-defined]
        policy = Source(ranks, seed)
        asked = list(OfflineMinibatch(reading_of(keys, ranks, policy, Way()), units[:rows], None).samples_for_reference())
        reference, computed = load_or_compute(policy, asked, ranks, budget, tmp_path)  # type: ignore[arg-type]
        return (
            reference.look_up(asked).tolist(),
            computed,
            policy.samples_for_reference,
            [policy.logprobs([x], len(x.tokens))[0].sum().item() for x in asked],
        )

    first, again = together(world, work), together(world, work)
    assert first[0][0] == pytest.approx(first[0][3], abs=1e-5)
    assert first[0][1] == len(set(first[0][0])) > 6 and sum(asked for _, _, asked, _ in first) == first[0][1]
    for said, computed, asked, _ in again:
        assert (said, computed, asked) == (first[0][0], 0, 0)  # bit for bit, from the file
    for other in ({"seed": 1}, {"rows": 5}, {"budget": 20}):  # other weights, other rows, another cut: other files
        assert together(world, lambda ranks, other=other: work(ranks, **other))[0][1] > 0
    for file in (tmp_path / "reference").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    assert together(world, work)[0][:2] == (first[0][0], first[0][1])  # torn files are made anew


def test_rows_of_two_files_with_one_number_are_two_prompts_to_the_reference() -> None:
    """A training row and a held-out row are scored together, and both files count from 0."""
    pairs = [Pair(0, 0, prompt, (5,), (6,)) for prompt in ((1, 2), (3,))]
    samples = [s for pair in pairs for s in UNITS["pairs"](pair).samples]
    distinct = rekey_by_prompt(samples)
    assert [s.key.of_prompt for s in distinct] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    assert [(s.prompt, s.tokens.tolist()) for s in distinct] == [(s.prompt, s.tokens.tolist()) for s in samples]


# -- small parts -------------------------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    """8 of 10: the textbook's 0.490 to 0.943. None of none says nothing, all of ten is not certain."""
    low, high = wilson_interval(Mean(8.0, 10.0))
    assert (low, high) == (pytest.approx(0.4901625), pytest.approx(0.9433178))
    assert wilson_interval(Mean(0.0, 0.0)) == (0.0, 1.0)
    assert wilson_interval(Mean(10.0, 10.0)) == (pytest.approx(0.7224672), pytest.approx(1.0))
