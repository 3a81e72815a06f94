"""Which evaluation of a run is the best, how it is labelled, and when a run stops early for want of a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

LESS_IS_BETTER = ("loss",)
STOPPED_ON = "of the evaluations that it stopped early on"


@dataclass(frozen=True)
class Selection:
    """What the recipe selects by: the section `eval`, and checkpoint.best."""

    metric: str  # of an evaluation, without eval/
    patience: int | None = None  # evaluations without a better one, after which the run stops early; None: never
    best: Literal["export"] | bool = False  # whether the best checkpoint is kept, and exported

    @property
    def is_asked_for(self) -> bool:
        """Whether anything follows from which evaluation is the best."""
        return bool(self.patience or self.best)

    def is_better(self, now: float, best: float) -> bool:
        """A number is better than NaN, and NaN, of an evaluation in which nothing was graded, than nothing."""
        if math.isnan(now) or math.isnan(best):
            return math.isnan(best) and not math.isnan(now)
        return now < best if self.metric in LESS_IS_BETTER else now > best


@dataclass(frozen=True)
class BestEvaluation:
    """The value of the metric, the step, and all metrics of that evaluation."""

    value: float
    step: int
    held_out: dict[str, float]


@dataclass(frozen=True)
class Evaluations:
    """Those of a run so far; a part of its checkpoint."""

    count: int = 0
    first: dict[str, float] = field(default_factory=dict)  # the metrics of the one before training
    last: dict[str, float] = field(default_factory=dict)
    last_step: int | None = None
    best: BestEvaluation | None = None
    since_best: int = 0

    def add(self, step: int, held_out: dict[str, float], selection: Selection) -> Evaluations:
        """With one more. Of equal ones the first is the best. One of other sets than the one that is selected by does not count."""
        value = held_out.get(f"eval/{selection.metric}")
        if value is None:
            return self
        better = self.best is None or selection.is_better(value, self.best.value)
        return replace(
            self,
            count=self.count + 1,
            first=held_out if step == 0 else self.first,
            last=held_out,
            last_step=step,
            best=BestEvaluation(value, step, held_out) if better else self.best,
            since_best=0 if better else self.since_best + 1,
        )

    def is_exhausted(self, step: int, patience: int | None) -> bool:
        """Whether the evaluation after `step` is the last that the patience allows."""
        return patience is not None and self.last_step == step > 0 and self.since_best >= patience

    def metrics(self, selection: Selection) -> dict[str, float]:
        """What an evaluation adds to the row of its step, where something is selected by it."""
        if not selection.is_asked_for or self.best is None:
            return {}
        return {"eval/best": self.best.value, "eval/since_best": float(self.since_best)}


def load_evaluations(saved: Mapping[str, Any]) -> Evaluations:
    """From the JSON of a checkpoint. Raises TypeError and KeyError for another form."""
    best = saved["best"]
    return Evaluations(**{**saved, "best": None if best is None else BestEvaluation(**best)})


def describe_best(evaluations: Evaluations) -> str:
    """`best of 9 evaluations it was selected on`: a maximum of noisy numbers is higher than what other rows would give."""
    return f"best of {evaluations.count} evaluations it was selected on"


def describe_early_stop(evaluations: Evaluations, selection: Selection, step: int, steps: int) -> str:
    best = evaluations.best
    assert best is not None
    return (
        f"stopped early after step {step} of {steps}: {evaluations.since_best} evaluations without a better {selection.metric} than "
        f"{best.value:.3f} of step {best.step} (eval.patience={selection.patience})"
    )
