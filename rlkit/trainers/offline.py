"""The step of every offline algorithm: read rows, update on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from rlkit.errors import Stopped
from rlkit.metrics import Mean, Metrics, Sum, describe_accuracy, merge, metric_values
from rlkit.profiling.memory_peak import PeakMemory, build_memory_metrics
from rlkit.profiling.roofline import Roofline, compute_ratios
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import StepResult
from rlkit.types import Sample
from rlkit.updates.offline_update import OfflineMinibatch, OfflineUpdater
from rlkit.updates.optimizer_step import UpdateCount
from rlkit.updates.reference_cache import ReferenceLogprobs
from rlkit.updates.units import UNITS, Unit


class RowStream(Protocol):
    """Where rows come from; the same on every rank."""

    def take(self, n: int) -> Sequence[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class OfflineTrainer:
    """Rows of the data, and what learns from them."""

    rows: RowStream
    rows_per_step: int
    held_out: list[Unit]
    updater: OfflineUpdater
    reference: ReferenceLogprobs | None
    timer: PhaseTimer
    stopping: StopRequest
    roofline: Roofline | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)  # bytes at the peak of its one phase
    gauge: PeakMemory = field(default_factory=PeakMemory)

    @property
    def measure(self) -> str:
        return self.updater.algorithm.measure

    @property
    def tokens_per_micro_batch(self) -> int:
        return self.updater.tokens_per_micro_batch

    @property
    def evaluates(self) -> bool:
        return bool(self.held_out)

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """The next rows and the updates on them."""
        self.gauge.start()
        with self.timer("read"):
            units = self._next_units()
        parts: list[Metrics] = []
        with self.timer("update"):
            for _ in range(self.updater.passes):
                for minibatch in filter(None, self.updater.split_minibatches(units)):  # the last rows may be fewer
                    metrics, count = self.updater.update(minibatch, self.reference, count)
                    parts.append(metrics)
        return StepResult(self._build_row(units, merge(parts)), count, sum(u.tokens for u in units))

    def _build_row(self, units: list[Unit], metrics: Metrics) -> dict[str, float]:
        """The metrics of a step."""
        rows = self.rows.state_dict()
        return {
            **add_margins(metric_values(metrics)),
            **{f"rows/{name}": float(rows[name]) for name in ("too_long", "bad_row", "cut")},
            "throughput/tokens_per_second": sum(u.tokens for u in units) / self.timer.seconds,
            **build_memory_metrics({"train": self.gauge.peak()}, self.predicted),
            **self._compare_with_roofline(units),
        }

    def _compare_with_roofline(self, units: list[Unit]) -> dict[str, float]:
        if self.roofline is None:
            return {}
        updater, seconds = self.updater, self.timer.metrics()
        lengths = [part[i].lengths for part in updater.split_minibatches(units) for i in updater.select_share(part)] * updater.passes
        row = compute_ratios({"update": self.roofline.update(lengths)}, seconds)
        return row | {"throughput/mfu": self.roofline.compute_mfu(lengths, seconds["time/update"])}

    def evaluate(self, step: int, every_set: bool) -> dict[str, float]:
        """The loss on held-out rows and the metrics of a step on them; of an accuracy its 95 % interval."""
        minibatch = OfflineMinibatch(self.updater, self.held_out, self.reference)
        parts: list[Metrics] = []
        with self.timer("evaluation"), torch.no_grad():
            for items in minibatch.plan():
                if self.updater.ranks.any_rank(self.stopping.requested):
                    raise Stopped
                loss, metrics = minibatch.loss(items)
                parts.append(metrics | {"loss": Sum(float(loss))})
        merged = self.updater.ranks.merge_metrics(merge(parts))
        row = {f"eval/{name}": value for name, value in add_margins(metric_values(merged)).items()}
        accuracy = merged.get("rewards/accuracies")
        if isinstance(accuracy, Mean):
            row |= describe_accuracy(accuracy)
        return row

    @property
    def asks_to_stop(self) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows.state_dict()}

    def load(self, state: dict[str, Any], step: int) -> None:
        self.rows.load_state_dict(state["rows"])

    def _next_units(self) -> list[Unit]:
        return [UNITS[self.updater.algorithm.reads](item) for item in self.rows.take(self.rows_per_step)]

    def samples_for_reference(self, steps: int) -> Iterator[Sample]:
        """All completions whose log-probs by the reference are needed in `steps` steps and in evaluations; the rows are put back."""
        start = self.rows.state_dict()
        for _ in range(steps):
            for minibatch in self.updater.split_minibatches(self._next_units()):
                yield from OfflineMinibatch(self.updater, minibatch, None).samples_for_reference()
        self.rows.load_state_dict(start)
        yield from OfflineMinibatch(self.updater, self.held_out, None).samples_for_reference()


def add_margins(row: dict[str, float]) -> dict[str, float]:
    """The row with the mean reward of chosen completions minus that of rejected ones, where there are both."""
    margin = row.get("rewards/chosen", math.nan) - row.get("rewards/rejected", math.nan)
    return row if math.isnan(margin) else {**row, "rewards/margins": margin}
