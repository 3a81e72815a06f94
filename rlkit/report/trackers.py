"""The trackers that get the metrics of each step besides metrics.jsonl.

A new tracker is a class with `log` and `close` in a file of its own (see tensorboard.py) and a line in TRACKERS. If it needs a key of the
recipe, follow `wandb` through ReportSection (config/sections.py), create_report (assembly/build.py), Report and TrackerSettings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlkit.report.tensorboard import TensorBoard
from rlkit.report.wandb import WandB


class Tracker(Protocol):
    """A place that metrics are sent to. Where it raises, the run warns and continues without it; only a UserError ends the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Write what is left, and close."""


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker may need to open."""

    folder: Path  # of the run; it exists
    title: str  # the name of the run
    attempt: int  # 1, and one more at each resume
    offline: bool  # no network
    wandb: str | None  # report.wandb: the W&B project, None without


# name -> opens the tracker, or returns None where the recipe does not ask for it
TRACKERS: dict[str, Callable[[TrackerSettings], Tracker | None]] = {
    "TensorBoard": lambda s: TensorBoard(s.folder / "tensorboard", resumed=s.attempt > 1),
    "W&B": lambda s: WandB(s.folder, project=s.wandb, name=s.title, offline=s.offline) if s.wandb is not None else None,
}
