"""The names of metrics that the console and the picture look for; any other name is written down all the same.

As TRL has them where it has one. A name that depends on the machine starts with one of MACHINE_DEPENDENT and no other does, so that
two runs of one seed can be compared row by row. Of the time/ names those of rlkit.runtime.timer.PHASES do not overlap and add up; no other
does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

REWARD = "reward"
REWARD_STD = "reward_std"
LOSS = "loss"
ACCURACY = ("accuracy", "rewards/accuracy/mean", "rewards/accuracies")  # of the step's own samples; the first that is there
HELD_OUT = "eval/accuracy"
HELD_OUT_LOSS = "eval/loss"  # looked for where there is no accuracy, as LOSS where there is no reward
LENGTH = "completions/mean_length"
SPEED = "throughput/tokens_per_second"
MFU = "throughput/mfu"  # of the update
TIME = "time/"
FLOOR = "floor/"  # by phase, how many times the least that this machine needs
MACHINE_DEPENDENT = (TIME, FLOOR, "throughput/", "memory/")


def select_repeatable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row of metrics.jsonl that a second run with the same seed, or a resumed one, must repeat exactly."""
    return {name: value for name, value in row.items() if name != "attempt" and not name.startswith(MACHINE_DEPENDENT)}


def find_train_accuracy(row: Mapping[str, Any]) -> float | None:
    """Accuracy of the step's own samples, None where no reward measures it."""
    return next((row[name] for name in ACCURACY if name in row), None)


def format_roofline(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far each phase is from its floor, medians over the rows: `rollout 3.1x  update 2.4x (mfu 41 %)`; nothing where no row tells."""

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows if row.get(name) is not None)

    names = list(dict.fromkeys(name for row in rows for name in row if name.startswith(FLOOR) and row[name] is not None))
    utilised = f" (mfu {median(MFU):.0%})" if any(row.get(MFU) is not None for row in rows) else ""
    return "  ".join(f"{name.removeprefix(FLOOR)} {median(name):.1f}x{utilised if name == FLOOR + 'update' else ''}" for name in names)
