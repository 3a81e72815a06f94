"""report.png: a run on one page. What it learns, its health, and its time: of the phases of a step, and apart from them of evaluations.

The six panels above the time are the first of PANELS that the run has numbers for. Layout is by hand: matplotlib's own draws all twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.report.names import (
    HELD_OUT,
    HELD_OUT_LOSS,
    LENGTH,
    LOSS,
    PHASE_COLORS,
    REWARD,
    REWARD_STD,
    SPEED,
    TIME,
    find_held_out,
    find_train_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES, _DPI = (11.0, 7.5), 110
_TRAIN, _EVALUATED, _THIRD = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito, which colour-blind readers tell apart
_GRAY = "#666666"
_SHOWN_PANELS = 6
_MARKED_STEPS = 40  # above which a curve has no dots
_TITLE_CHARS = 130
EVALUATION = "evaluation"

Row = Mapping[str, Any]
Value = Callable[[Row], float | None]


@dataclass(frozen=True)
class Curve:
    """Numbers over steps. band: the ends of an interval around each, where there is one."""

    label: str
    color: str
    value: Value
    band: Callable[[Row], tuple[float, float] | None] = lambda row: None


@dataclass(frozen=True)
class Panel:
    """Curves in one unit. low, high: where the axis ends at least; None: where the numbers do."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    low: float | None = None
    high: float | None = None


def draw_report(metrics: Sequence[Row], path: Path, title: str = "", subtitle: str = "") -> None:
    """Draw the rows of metrics.jsonl (one for each step) as a PNG of 1210 x 825 pixels."""
    from matplotlib.figure import Figure  # no pyplot: no window and no global state; Agg draws the PNG

    figure = Figure(figsize=_INCHES)
    grid = figure.add_gridspec(3, 3, left=0.06, right=0.985, bottom=0.065, top=0.87, wspace=0.22, hspace=0.36)
    figure.text(0.02, 0.975, title[:_TITLE_CHARS], va="top", parse_math=False, fontsize=13, fontweight="bold")
    figure.text(0.02, 0.935, subtitle[:_TITLE_CHARS], va="top", parse_math=False, fontsize=9.5, color=_GRAY)
    for place, panel in enumerate(choose_panels(metrics)):
        _draw_panel(figure.add_subplot(grid[place // 3, place % 3]), panel, metrics)
    _draw_time(figure.add_subplot(grid[2, :2]), metrics)
    _draw_evaluation_time(figure.add_subplot(grid[2, 2]), metrics)
    _label_steps(figure, metrics)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format="png", dpi=_DPI)
    unfinished.replace(path)


def choose_panels(metrics: Sequence[Row]) -> list[Panel]:
    """Of each line of PANELS the first panel for which there are numbers, as many as fit; without numbers the first ones, empty."""
    found = [next((p for p in line if any(c.value(row) is not None for c in p.curves for row in metrics)), None) for line in PANELS]
    return [panel for panel in found if panel is not None][:_SHOWN_PANELS] or [line[0] for line in PANELS[:3]]


def _read(name: str) -> Value:
    return lambda row: row.get(name)


def _read_band(name: str) -> Callable[[Row], tuple[float, float] | None]:
    """The 95 % interval of an evaluation."""

    def read(row: Row) -> tuple[float, float] | None:
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return None if low is None or high is None else (low, high)

    return read


def _read_spread(row: Row) -> tuple[float, float] | None:
    mean, std = row.get(REWARD), row.get(REWARD_STD)
    return None if mean is None or std is None else (mean - std, mean + std)


def _add_clipped(row: Row) -> float | None:
    sides = [row[name] for name in ("clip_ratio/low_mean", "clip_ratio/high_mean") if row.get(name) is not None]
    return sum(sides) if sides else None


def _scale_rate(row: Row) -> float | None:
    rate = row.get("learning_rate")
    return None if rate is None else 1e6 * rate


def _count_signal(row: Row) -> float | None:
    equal = row.get("frac_reward_zero_std")
    return None if equal is None else 1.0 - equal


PANELS: tuple[tuple[Panel, ...], ...] = (
    (
        Panel("Reward", "± deviation within a group", (Curve("train", _TRAIN, _read(REWARD), _read_spread),)),
        Panel("Loss", "", (Curve("train", _TRAIN, _read(LOSS)), Curve("held-out", _EVALUATED, _read(HELD_OUT_LOSS)))),
    ),
    (
        Panel(
            "Accuracy",
            "share, held-out with 95 % interval",
            (Curve("train", _TRAIN, find_train_accuracy), Curve("held-out", _EVALUATED, find_held_out, _read_band(HELD_OUT))),
            -0.02,
            1.02,
        ),
    ),
    (
        Panel("Completion length", "tokens, mean", (Curve("train", _THIRD, _read(LENGTH)),), 0.0),
        Panel("Reward margin", "chosen less rejected", (Curve("train", _THIRD, _read("rewards/margins")),)),
    ),
    (
        Panel("KL to the start", "nats a token", (Curve("train", _TRAIN, _read("kl")),), 0.0),
        Panel("Gradient norm", "before clipping", (Curve("train", _TRAIN, _read("grad_norm")),), 0.0),
    ),
    (
        Panel("Entropy", "nats a token", (Curve("train", _TRAIN, _read("entropy")),), 0.0),
        Panel("Learning rate", "millionths", (Curve("train", _TRAIN, _scale_rate),), 0.0),
    ),
    (
        Panel(
            "Health",
            "shares",
            (
                Curve("groups with signal", _THIRD, _count_signal),
                Curve("completions cut", _EVALUATED, _read("completions/clipped_ratio")),
                Curve("tokens clipped", _TRAIN, _add_clipped),
            ),
            -0.02,
            1.02,
        ),
        Panel("Speed", "tokens a second", (Curve("train", _TRAIN, _read(SPEED)),), 0.0),
    ),
)


def _draw_panel(axes: Axes, panel: Panel, metrics: Sequence[Row]) -> None:
    for curve in panel.curves:
        points = [(row["step"], value) for row in metrics if (value := curve.value(row)) is not None]
        bands = [(row["step"], *band) for row in metrics if (band := curve.band(row)) is not None]
        if bands:
            steps, low, high = zip(*bands, strict=True)
            axes.fill_between(steps, low, high, color=curve.color, alpha=0.15, linewidth=0)
            if len(bands) == 1:  # has no area
                axes.vlines(steps, low, high, color=curve.color, alpha=0.4)
        if points:
            marker = "o" if len(points) <= _MARKED_STEPS else ""
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=1.5, color=curve.color, label=curve.label)
    if panel.low is not None:
        axes.set_ylim(bottom=min(panel.low, axes.get_ylim()[0]) if panel.high is not None else panel.low)
    if panel.high is not None:
        axes.set_ylim(top=panel.high)
    _set_title(axes, panel.title, panel.unit)
    if len(panel.curves) > 1 and axes.has_data():
        axes.legend(frameon=False, fontsize=8, handlelength=1.2, borderaxespad=0.2, labelspacing=0.2)


def _draw_time(axes: Axes, metrics: Sequence[Row]) -> None:
    """The phases of each step over each other; percentiles of reward latency are none, and an evaluation is no part of a step."""
    of_step = {name: color for name, color in PHASE_COLORS.items() if name != EVALUATION}
    phases = [name for name in of_step if any(row.get(f"{TIME}{name}") is not None for row in metrics)]
    rows = [row for row in metrics if any(row.get(f"{TIME}{name}") is not None for name in phases)]
    _set_title(axes, "Time of a step by phase", "seconds, without evaluation")
    if not rows:
        return
    steps = [row["step"] for row in rows]
    between = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    edges = [steps[0] - 0.5, *between, steps[-1] + 0.5]
    base = [0.0] * len(rows)
    for name in phases:
        top = [below + (row.get(f"{TIME}{name}") or 0.0) for below, row in zip(base, rows, strict=True)]
        axes.fill_between(edges, [*base, base[-1]], [*top, top[-1]], step="post", color=of_step[name], linewidth=0, label=name)
        base = top
    axes.set_ylim(bottom=0, top=1.25 * max(base) or None)  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=len(phases), loc="upper right", handlelength=1.0, borderaxespad=0.2, columnspacing=1.2)


def _draw_evaluation_time(axes: Axes, metrics: Sequence[Row]) -> None:
    points = [(row["step"], row[f"{TIME}{EVALUATION}"]) for row in metrics if row.get(f"{TIME}{EVALUATION}") is not None]
    _set_title(axes, "Time of an evaluation", "seconds")
    if points:
        steps, seconds = zip(*points, strict=True)
        axes.vlines(steps, 0.0, seconds, color=PHASE_COLORS[EVALUATION], linewidth=4.0)
        axes.set_ylim(bottom=0, top=1.1 * max(seconds) or None)


def _set_title(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(f"{title}  ({unit})" if unit else title, loc="left", fontsize=10)


def _label_steps(figure: Figure, metrics: Sequence[Row]) -> None:
    """The same steps in all panels, few ticks (each costs milliseconds), and what stands where nothing was measured."""
    from matplotlib.ticker import MaxNLocator

    last = max((row["step"] for row in metrics), default=1)
    for place, axes in enumerate(figure.axes):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=8, length=2.5)
        if place + 3 < len(figure.axes) - 2:  # the panel below has the same steps
            axes.tick_params(labelbottom=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlim(-0.02 * last - 0.5, 1.02 * last + 0.5)
        if place >= len(figure.axes) - 2:
            axes.set_xlabel("step", fontsize=9, labelpad=1)
        if not axes.has_data():
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=_GRAY)
