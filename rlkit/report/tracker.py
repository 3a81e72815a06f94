"""What a tracker is, and what it may need to open. trackers.py lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """A place that metrics are sent to. Where it raises, the run warns and continues without it; only a UserError ends the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Take a table of samples, as rows of samples.jsonl with equal keys; called only with report.upload_samples=true."""

    def close(self, state: str) -> None:
        """Write what is left, and close. state: done, stopped (it can be resumed) or failed."""


@dataclass(frozen=True)
class TrackerSettings:
    """What a tracker may need to open."""

    folder: Path = Path()  # of the run; it exists
    attempt: int = 1  # 1, and one more at each resume
    name: str = ""  # of the run, with its seed
    group: str = ""  # the same for all seeds of one experiment
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)  # the resolved recipe, without credentials
    offline: bool = False  # no network: folders only
    projects: Mapping[str, str] = field(default_factory=dict)  # key of a tracker in `report` -> its project, of those that are wanted
    upload_samples: bool = False
