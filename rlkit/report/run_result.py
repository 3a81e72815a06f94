"""What a run came to, read from its folder: how far it is, held-out values, reward, speed. It works while the run writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import UserError
from rlkit.report.console import format_number
from rlkit.report.folder import METRICS, read_metrics
from rlkit.report.names import HELD_OUT, HELD_OUT_LOSS, LOSS, REWARD, SPEED, find_set_accuracies
from rlkit.report.status import read_run_status

RECIPE = "recipe.yaml"
STEP_SECONDS = "time/step"
ABSENT = "-"


@dataclass(frozen=True)
class HeldOutResult:
    """One evaluation. low, high: the ends of its 95 % interval; None where it has none."""

    step: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RunResult:
    """state: of report/status.py; step: the last one; steps: planned, None where it is not known.

    held_out: all evaluations of `measure`, accuracy or loss. seconds_per_step, tokens_per_second: medians. What was not measured is None.
    """

    folder: Path
    recipe: Mapping[str, Any]
    state: str
    step: int
    steps: int | None
    measure: str
    held_out: Sequence[HeldOutResult]
    reward: float | None  # of the last step; the loss of an algorithm without one is in `loss`
    loss: float | None
    seconds_per_step: float | None
    tokens_per_second: float | None

    @property
    def first(self) -> HeldOutResult | None:
        return self.held_out[0] if self.held_out else None

    @property
    def last(self) -> HeldOutResult | None:
        return self.held_out[-1] if self.held_out else None

    @property
    def best(self) -> HeldOutResult | None:
        """The earliest with the highest accuracy, or the lowest loss."""
        sign = -1.0 if self.measure == "loss" else 1.0
        return max(self.held_out, key=lambda evaluation: sign * evaluation.value, default=None)


def find_runs(folder: Path) -> list[Path]:
    """The folder itself where it holds a run, else those in it that do, as --multirun writes them. Raises UserError where there is none."""
    if (folder / RECIPE).is_file():
        return [folder]
    found = sorted(file.parent for file in folder.glob(f"*/{RECIPE}"))
    if not found:
        raise UserError(f"{folder} is not the folder of a run: it has no {RECIPE}, and no folder in it has one")
    return found


def read_result(folder: Path) -> RunResult:
    """What the run in a folder came to. Raises UserError where there is none, or a file of it is damaged."""
    try:
        recipe = yaml.safe_load((folder / RECIPE).read_text())
        rows = read_metrics(folder / METRICS)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is not the folder of a run: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{folder} is not the folder of a run: its {RECIPE} is empty")
    status = read_run_status(folder)
    steps = [row for row in rows if row["step"] > 0]
    last = steps[-1] if steps else {}
    name = find_held_out_name(rows)
    return RunResult(
        folder=folder,
        recipe=recipe,
        state=status.state if status else "not begun",
        step=last.get("step", 0),
        steps=status.steps if status else None,
        measure=name.removeprefix("eval/"),
        held_out=[
            HeldOutResult(row["step"], row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))
            for row in rows
            if is_number(row.get(name))
        ],
        reward=find_median([last], REWARD),
        loss=find_median([last], LOSS),
        seconds_per_step=find_median(steps, STEP_SECONDS),
        tokens_per_second=find_median(steps, SPEED),
    )


def find_held_out_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """The metric by which the model of a run is judged: of data.test, else of its first set, else the loss."""
    if any(HELD_OUT in row for row in rows):
        return HELD_OUT
    return next((f"eval/{name}/accuracy" for row in rows for name in find_set_accuracies(row)), HELD_OUT_LOSS)


def find_median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of a metric, over the rows that have it."""
    numbers = [row[name] for row in rows if is_number(row.get(name))]
    return statistics.median(numbers) if numbers else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show_evaluation(found: HeldOutResult | None) -> str:
    """`0.450 [0.342, 0.563]`; the interval where there is one."""
    if found is None:
        return ABSENT
    interval = f" [{format_number(found.low)}, {format_number(found.high)}]" if found.low is not None else ""
    return f"{format_number(found.value)}{interval}"


def show_steps(result: RunResult) -> str:
    return f"{result.step} of {result.steps}" if result.steps is not None else str(result.step)


def show_number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


FIELDS: dict[str, Callable[[RunResult], str]] = {  # a row of a table for each, by its label
    "state": lambda result: result.state,
    "steps": show_steps,
    "held-out": lambda result: result.measure if result.held_out else ABSENT,
    "first": lambda result: show_evaluation(result.first),
    "best": lambda result: show_evaluation(result.best),
    "best after step": lambda result: str(result.best.step) if result.best else ABSENT,
    "last": lambda result: show_evaluation(result.last),
    "reward": lambda result: show_number(result.reward, ".3f"),
    "loss": lambda result: show_number(result.loss, ".3f") if result.reward is None else ABSENT,
    "seconds a step": lambda result: show_number(result.seconds_per_step, ".2f"),
    "tokens/s": lambda result: show_number(result.tokens_per_second, ",.0f"),
}
