"""The names of metrics that the console and the picture use. All other metrics are logged as well.

Names are those of TRL where TRL has one. Exactly the metrics that depend on the machine start with time/, floor/, throughput/ or
memory/, so that two runs with one seed can be compared row by row. Of the time/ metrics, those of rlkit.runtime.timer.PHASES do not overlap
and add up.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

REWARD = "reward"
REWARD_STD = "reward_std"
LOSS = "loss"
ACCURACY = ("accuracy", "rewards/accuracy/mean", "rewards/accuracies")  # of the samples of the step; the first that exists
HELD_OUT = "eval/accuracy"
SET_ACCURACY = re.compile(r"eval/([^/]+)/accuracy")
HELD_OUT_LOSS = "eval/loss"  # used where there is no accuracy, as LOSS where there is no reward
BEST = "eval/best"  # where a recipe selects by evaluations
LENGTH = "completions/mean_length"
SPEED = "throughput/tokens_per_second"
MFU = "throughput/mfu"  # of the update
TIME = "time/"
CLOCK = "time/clock"  # Unix seconds at the end of the step
PHASE_COLORS = {  # one for ever, in every picture, by the names of rlkit.runtime.timer.PHASES
    "sync": "#56B4E9",
    "rollout": "#0072B2",
    "resume": "#F0E442",
    "read": "#009E73",
    "observe": "#E69F00",
    "update": "#D55E00",
    "evaluation": "#CC79A7",
    "checkpoint": "#999999",
}
FLOOR = "floor/"  # by phase, its time over the least time that this machine needs
MACHINE = (TIME, FLOOR, "throughput/", "memory/")  # how names begin that depend on the machine


def find_set_accuracies(row: Mapping[str, Any]) -> dict[str, float]:
    """The held-out accuracy on each set of eval.sets, by its name."""
    found = {match[1]: row[name] for name in row if (match := SET_ACCURACY.fullmatch(name))}
    return {name: value for name, value in found.items() if value is not None}


def find_held_out(row: Mapping[str, Any]) -> float | None:
    """The held-out accuracy: on data.test, else on the first set."""
    if row.get(HELD_OUT) is not None:
        return float(row[HELD_OUT])
    return next(iter(find_set_accuracies(row).values()), None)


def find_train_accuracy(row: Mapping[str, Any]) -> float | None:
    """The accuracy of the samples of the step; None where no reward measures it."""
    return next((row[name] for name in ACCURACY if name in row), None)


def format_roofline(rows: Sequence[Mapping[str, Any]]) -> str:
    """Time of each phase over its least time, medians over the rows: `rollout 3.1x  update 2.4x (mfu 41%)`; empty without such metrics."""

    def median(name: str) -> float:
        return float(statistics.median(row[name] for row in rows if row.get(name) is not None))

    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(FLOOR) and row[name] is not None))
    mfu = f" (mfu {median(MFU):.0%})" if any(row.get(MFU) is not None for row in rows) else ""
    return "  ".join(f"{name.removeprefix(FLOOR)} {median(name):.1f}x{mfu if name == FLOOR + 'update' else ''}" for name in names)
