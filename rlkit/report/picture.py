"""report.png: a run on one page. Reward or loss, accuracy, completion length, and the time of each phase."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.report.names import HELD_OUT, HELD_OUT_LOSS, LENGTH, LOSS, REWARD, REWARD_STD, TIME, find_train_accuracy
from rlkit.runtime.timer import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (11.0, 7.0)
_DPI = 110

Points = tuple[list[float], list[float]]  # steps, values


def draw_report(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of metrics.jsonl (one for each step) as a PNG of 1210 x 770 pixels."""
    from matplotlib.figure import Figure  # no pyplot: no window and no global state; Agg draws the PNG
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_INCHES)
    figure.subplots_adjust(
        left=0.06, right=0.98, bottom=0.07, top=0.95, wspace=0.15, hspace=0.3
    )  # by hand: matplotlib's layout draws twice
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    _draw_reward(top_left, metrics)
    _draw_accuracy(top_right, metrics)
    _draw_curve(bottom_left, _select_points(metrics, LENGTH), color="tab:green")
    bottom_left.set_ylim(bottom=0)
    _draw_time(bottom_right, metrics)
    titles = (
        "reward" if _select_points(metrics, REWARD)[0] else "loss",
        "accuracy",
        "completion length (tokens)",
        "time by phase (seconds a step)",
    )
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if not axes.has_data():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="gray")
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=_DPI)
    unfinished.replace(path)


def _draw_reward(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    rewards = _select_points(metrics, REWARD)
    if not rewards[0]:  # offline
        _draw_curve(axes, _select_points(metrics, LOSS), color="tab:blue", label="train")
        _draw_curve(axes, _select_points(metrics, HELD_OUT_LOSS), color="tab:orange", label="held-out")
        if axes.has_data():
            axes.legend(frameon=False, loc="upper right")
        return
    _draw_curve(axes, rewards, color="tab:blue")
    spread = [row for row in metrics if row.get(REWARD) is not None and row.get(REWARD_STD) is not None]
    if spread:
        low, high = [row[REWARD] - row[REWARD_STD] for row in spread], [row[REWARD] + row[REWARD_STD] for row in spread]
        axes.fill_between([row["step"] for row in spread], low, high, color="tab:blue", alpha=0.15, linewidth=0, label="± reward_std")
        axes.legend(frameon=False, loc="upper left")


def _draw_accuracy(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    train = [(row["step"], value) for row in metrics if (value := find_train_accuracy(row)) is not None]
    _draw_curve(axes, ([step for step, _ in train], [value for _, value in train]), color="tab:blue", label="train")
    _draw_curve(axes, _select_points(metrics, HELD_OUT), color="tab:orange", label="held-out")
    axes.set_ylim(-0.02, 1.02)
    if axes.has_data():
        axes.legend(frameon=False, loc="lower right")


def _draw_time(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    phases = [name for name in (f"{TIME}{phase}" for phase in PHASES) if any(row.get(name) is not None for row in metrics)]
    rows = [row for row in metrics if any(row.get(name) is not None for name in phases)]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    between = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    edges = [steps[0] - 0.5, *between, steps[-1] + 0.5]
    base = [0.0] * len(rows)
    for name in phases:
        top = [below + (row.get(name) or 0.0) for below, row in zip(base, rows, strict=True)]
        axes.stairs(top, edges, baseline=base, fill=True, alpha=0.8, label=name.removeprefix(TIME))
        base = top
    axes.set_ylim(bottom=0, top=1.3 * max(base) or None)  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def _select_points(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    rows = [row for row in metrics if row.get(name) is not None]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _draw_curve(axes: Axes, points: Points, *, color: str, label: str | None = None) -> None:
    steps, values = points
    if steps:
        axes.plot(steps, values, marker="o" if len(steps) <= 40 else "", markersize=3, linewidth=1.5, color=color, label=label)
