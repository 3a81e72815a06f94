"""What is said of a whole run at its end: summary.json, and the last lines of the console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """before, after: `measure` on held-out rows, of the model that the run began with and of the one that it exports."""

    status: str
    steps: int  # that were done
    wall_seconds: float
    before: float | None = None
    after: float | None = None
    measure: str = "accuracy"
    held_out: Mapping[str, float] = field(default_factory=dict)  # all metrics of the evaluation of the exported model
    label: str = ""  # why `after` is no unbiased number, in brackets behind it
    model_step: int | None = None  # the step of the exported model; None: the last
    best: tuple[str, float, int, str] | None = None  # of the evaluation that was selected: its metric, value, step and label
    stopped_early: str | None = None  # why

    def to_json(self) -> dict[str, Any]:
        """The content of summary.json."""
        content: dict[str, Any] = {"status": self.status, "steps": self.steps, "wall_seconds": self.wall_seconds}
        content |= {f"{self.measure}_before": self.before, f"{self.measure}_after": self.after}
        if self.held_out:
            content["held_out"] = dict(self.held_out)
        if self.best:
            metric, value, step, label = self.best
            content["selected"] = {"metric": metric, "value": value, "step": step, "label": label, "model_step": self.model_step}
        if self.stopped_early:
            content["stopped_early"] = self.stopped_early
        return content

    def describe_selection(self) -> list[str]:
        """Lines on what was selected by evaluations; empty where nothing was."""
        lines = [self.stopped_early] if self.stopped_early else []
        if self.best:
            metric, value, step, label = self.best
            exported = "model/ has its weights" if step == self.model_step else "rlkit export RUN step=best, where it was kept"
            lines.append(f"held-out {metric} {value:.3f} after step {step} ({label}); {exported}")
        return lines
