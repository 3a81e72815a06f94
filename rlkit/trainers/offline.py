"""The step of every offline algorithm: read, score, learn. Pairs, rated completions and demonstrations; a policy or a reward model.

A unit is what is never split: the two completions of a pair, or one completion. Every rank reads the same rows and works on its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rlkit.algorithms import OfflineAlgorithm
from rlkit.algorithms.offline import Kind
from rlkit.data.offline_rows import Demonstration, Pair, RatedCompletion
from rlkit.engines.base import Learner
from rlkit.errors import Stopped
from rlkit.metrics import Mean, Metrics, Sum, merge, metric_values, wilson_interval
from rlkit.ops.batching import SampleLength, assign_minibatches, balance_costs, count_tokens, measure_sample
from rlkit.ops.masking import pad_rows, token_weights, uniform_weights, weighted_sum
from rlkit.ops.preference import kto_baseline
from rlkit.profiling.memory_peak import PeakMemory, build_memory_metrics
from rlkit.profiling.roofline import PromptLengths, Roofline, compute_ratios
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import StepResult
from rlkit.types import Key, OfflineMicroBatch, Sample, Stop
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.online_update import UpdateCount, idle_pass, lockstep_micro_batches, step_optimizer
from rlkit.updates.reference_cache import Reference


@dataclass(frozen=True, eq=False)
class Unit:
    """What is never split."""

    samples: tuple[Sample, ...]  # of a pair the chosen one first
    desirable: bool = True

    @property
    def tokens(self) -> int:
        """Those of its prompt once."""
        return count_tokens([measure_sample(s) for s in self.samples])

    @property
    def asked(self) -> PromptLengths:
        return len(self.samples[0].prompt), [len(s.tokens) for s in self.samples]


def written(row: int, draw: int, number: int, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Sample:
    """A completion of the data, in the shape in which engines take one; no policy of ours sampled it."""
    tokens = torch.tensor(completion, dtype=torch.int64)
    everything, nothing = torch.ones(len(tokens), dtype=torch.bool), torch.zeros(len(tokens))
    return Sample(Key(row, draw, number), prompt, tokens, everything, nothing, nothing.int() - 1, Stop.EOS, "")


def of_pair(item: Pair) -> Unit:
    return Unit(tuple(written(item.row, item.draw, n, item.prompt, said) for n, said in enumerate((item.chosen, item.rejected))))


def of_rated(item: RatedCompletion) -> Unit:
    return Unit((written(item.row, item.draw, 0, item.prompt, item.completion),), item.desirable)


def of_demonstration(item: Demonstration) -> Unit:
    return Unit((written(item.row, item.draw, 0, item.prompt, item.completion),))


UNITS: dict[Kind, Callable[[Any], Unit]] = {"pairs": of_pair, "rated": of_rated, "demonstrations": of_demonstration}


class Rows(Protocol):
    """Where rows come from; the same on every rank."""

    def take(self, n: int) -> Sequence[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class OfflineUpdater:
    """What an update needs, built once."""

    learner: Learner
    said: Callable[[Sequence[Sample], int], Tensor]  # by the learner: log-probs [B, T] of tokens, or one score [B, 1] a completion
    algorithm: OfflineAlgorithm
    schedule: Schedule
    ranks: Ranks
    passes: int
    minibatches: int  # of one pass
    tokens_per_micro_batch: int
    max_skipped_updates: int

    def cut(self, units: list[Unit]) -> list[list[Unit]]:
        """The minibatches of a pass."""
        parts = assign_minibatches(len(units), self.minibatches)
        return [[u for u, part in zip(units, parts, strict=True) if part == m] for m in range(self.minibatches)]


@dataclass
class OfflineTrainer:
    """Rows of the data, and how they are learnt from."""

    rows: Rows
    rows_per_step: int
    held_out: list[Unit]
    reading: OfflineUpdater
    reference: Reference | None
    clock: PhaseTimer
    stopping: StopRequest
    floors: Roofline | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)  # bytes at the peak of its one phase
    gauge: PeakMemory = field(default_factory=PeakMemory)

    @property
    def measure(self) -> str:
        return self.reading.algorithm.measure

    @property
    def tokens_per_micro_batch(self) -> int:
        return self.reading.tokens_per_micro_batch

    @property
    def evaluates(self) -> bool:
        return bool(self.held_out)

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """The next rows and the updates on them."""
        self.gauge.start()
        with self.clock("read"):
            units = self._next()
        seen: list[Metrics] = []
        with self.clock("update"):
            for _ in range(self.reading.passes):
                for minibatch in filter(None, self.reading.cut(units)):  # the last rows may be fewer
                    metrics, count = one_update(self.reading, minibatch, self.reference, count)
                    seen.append(metrics)
        tokens = sum(u.tokens for u in units)
        left_out = {f"rows/{name}": float(self.rows.state_dict()[name]) for name in ("too_long", "bad_row", "cut")}
        row = {**with_margins(metric_values(merge(seen))), **left_out, "throughput/tokens_per_second": tokens / self.clock.seconds}
        row |= build_memory_metrics({"train": self.gauge.peak()}, self.predicted)
        return StepResult(row | self._floors(units), count, tokens)

    def evaluate(self, step: int) -> dict[str, float]:
        """The loss on held-out rows and all that is watched with it; of an accuracy its 95 % interval."""
        work = Work(self.reading, self.held_out, self.reference)
        seen: list[Metrics] = []
        with self.clock("evaluation"), torch.no_grad():
            for chosen in work.micro_batches():
                if self.reading.ranks.any_rank(self.stopping.requested):
                    raise Stopped
                loss, metrics = work.look(chosen)  # on ranks without work too: sharded models are gathered on all
                seen.append(metrics | {"loss": Sum(float(loss))})
        everything = self.reading.ranks.merge_metrics(merge(seen))
        row = {f"eval/{name}": value for name, value in with_margins(metric_values(everything)).items()}
        right = everything.get("rewards/accuracies")
        if isinstance(right, Mean):
            low, high = wilson_interval(right)
            row |= {"eval/accuracy": right.value, "eval/accuracy_low": low, "eval/accuracy_high": high}
        return row

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows.state_dict()}

    def load(self, state: dict[str, Any], step: int) -> None:
        self.rows.load_state_dict(state["rows"])

    def _floors(self, units: list[Unit]) -> dict[str, float]:
        if self.floors is None:
            return {}
        cut = self.reading.cut(units)
        asked = [part[i].asked for part in cut for i in share(part, self.reading.ranks)] * self.reading.passes
        clock = self.clock.metrics()
        return compute_ratios({"update": self.floors.update(asked)}, clock) | {
            "throughput/mfu": self.floors.compute_mfu(asked, clock["time/update"])
        }

    def _next(self) -> list[Unit]:
        return [UNITS[self.reading.algorithm.reads](item) for item in self.rows.take(self.rows_per_step)]

    def ahead(self, steps: int) -> Iterator[Sample]:
        """All that the reference is asked for in `steps` steps and in evaluations; the rows are put back where they were."""
        start = self.rows.state_dict()
        for _ in range(steps):
            for minibatch in self.reading.cut(self._next()):
                yield from Work(self.reading, minibatch, None).asked()
        self.rows.load_state_dict(start)
        yield from Work(self.reading, self.held_out, None).asked()


def share(units: list[Unit], ranks: Ranks) -> list[int]:
    """Numbers of those that this rank works on."""
    owner = balance_costs([u.tokens for u in units], ranks.world)
    return [i for i, rank in enumerate(owner) if rank == ranks.rank]


class Work:
    """A minibatch, or the held-out rows: what is looked at together, and this rank's share of it."""

    def __init__(self, reading: OfflineUpdater, units: list[Unit], reference: Reference | None) -> None:
        self.reading, self.units, self.reference = reading, units, reference
        ranks = reading.ranks
        self.mine = share(units, ranks)
        tokens = sum(int(s.mask.sum()) for u in units for s in u.samples)
        self.totals = torch.tensor([tokens, sum(len(u.samples) for u in units)], dtype=torch.float64)  # as of count_units
        self.baseline = self._baseline() if reading.algorithm.baseline and reference else None

    def asked(self) -> Iterator[Sample]:
        """The completions that the reference is asked for."""
        for unit in self.units:
            yield from unit.samples
        if self.reading.algorithm.baseline:
            yield from self._mismatched(range(len(self.units)))

    def micro_batches(self) -> list[list[int]]:
        """Numbers of units, equally many lists on all ranks."""
        sizes = [SampleLength(i, 0, self.units[i].tokens) for i in self.mine]
        return [
            [self.mine[k] for k in part] for part in lockstep_micro_batches(sizes, self.reading.tokens_per_micro_batch, self.reading.ranks)
        ]

    def look(self, chosen: list[int]) -> tuple[Tensor, Metrics]:
        """The share of some units in the loss, and what is watched."""
        units = [self.units[i] for i in chosen]
        samples = [s for u in units for s in u.samples]
        width = max((len(s.tokens) for s in samples), default=0)
        said = self.reading.said(samples, width)  # [B, T]
        if not samples:
            return said.sum() * 0.0, {}
        device = said.device
        mask = pad_rows([s.mask for s in samples], width, False)[:, : said.shape[1]].to(device)
        rows = OfflineMicroBatch(
            mask=mask,
            outputs=said,
            reference=self.reference.of(samples).to(device) if self.reference else None,
            desirable=torch.tensor([u.desirable for u in units for _ in u.samples], device=device),
            baseline=None if self.baseline is None else self.baseline.to(device),
        )
        losses, metrics = self.reading.algorithm.compute_losses(rows)
        totals = self.totals.to(device)
        token = self.reading.algorithm.unit == "token"
        weights = token_weights(mask, "token_mean", totals, 1) if token else uniform_weights(losses, len(self.units))
        return weighted_sum(losses, weights), metrics

    def _mismatched(self, places: Sequence[int] | range) -> Iterator[Sample]:
        """For each of some units its prompt with a completion of another prompt: that half the rows further on, or the next after it."""
        order = sorted(range(len(self.units)), key=lambda i: self.units[i].samples[0].key)
        rank = {i: p for p, i in enumerate(order)}
        for i in places:
            mine = self.units[i].samples[0]
            start = rank[i] + len(order) // 2  # far off: files hold rows of one prompt together
            others = (self.units[order[(start + k) % len(order)]].samples[0] for k in range(len(order)))
            other = next((o for o in others if o.prompt != mine.prompt), None)
            if other is not None:
                yield written(mine.key.prompt, mine.key.draw, -1, mine.prompt, tuple(other.tokens.tolist()))

    def _baseline(self) -> Tensor:
        """max(0, mean log(pi / pi_ref)) of completions of other prompts, over all ranks, without gradient."""
        assert self.reference is not None
        samples = list(self._mismatched(self.mine))
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for chosen in lockstep_micro_batches(
                [measure_sample(s) for s in samples], self.reading.tokens_per_micro_batch, self.reading.ranks
            ):
                part = [samples[i] for i in chosen]
                said = self.reading.said(part, max((len(s.tokens) for s in part), default=0))
                if part:
                    ratios = said.double().sum(-1).cpu() - self.reference.of(part)
                    total += torch.stack([ratios.sum(), torch.tensor(float(len(part)), dtype=torch.float64)])
        return kto_baseline(*self.reading.ranks.all_reduce_sum(total))


def one_update(reading: OfflineUpdater, units: list[Unit], reference: Reference | None, count: UpdateCount) -> tuple[Metrics, UpdateCount]:
    """One minibatch: losses over micro-batches, then one optimizer step."""
    metrics = gradient(reading, units, reference)
    applied, moved = step_optimizer(reading.learner, reading.schedule.lr(count.updates), "")
    metrics |= {**moved, "loss": Mean(metrics["loss"].value, 1.0), "updates_skipped": Sum(float(not applied))}
    return metrics, count.after(applied, reading.max_skipped_updates)


def gradient(reading: OfflineUpdater, units: list[Unit], reference: Reference | None) -> Metrics:
    """Backward over this rank's share in micro-batches, equally many on all ranks; metrics of all ranks."""
    work = Work(reading, units, reference)
    seen: list[Metrics] = []
    for chosen in work.micro_batches():
        with reading.learner.training():
            if not chosen:
                seen.append(idle_pass(reading.learner))
                continue
            loss, metrics = work.look(chosen)
            reading.learner.backward(loss)
            seen.append(metrics | {"loss": Sum(float(loss.detach()))})
    return reading.ranks.merge_metrics(merge(seen))


def with_margins(row: dict[str, float]) -> dict[str, float]:
    """The row with the mean reward of chosen completions over that of rejected ones, where there are both."""
    margin = row.get("rewards/chosen", math.nan) - row.get("rewards/rejected", math.nan)
    return row if math.isnan(margin) else {**row, "rewards/margins": margin}
