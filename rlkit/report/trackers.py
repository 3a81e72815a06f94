"""The trackers that get the metrics of each step besides metrics.jsonl, and tables of samples where the recipe allows it.

A new tracker is a class with the methods of Tracker (tracker.py) in a file of its own (see mlflow.py), which alone imports its library, a
line in TRACKERS, and a key of its name in ReportSection (config/sections.py). rlkit/docs/trackers.md describes each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlkit.report.mlflow import MLflow, require_mlflow
from rlkit.report.swanlab import SwanLab, require_swanlab
from rlkit.report.tensorboard import TensorBoard
from rlkit.report.tracker import Tracker, TrackerSettings
from rlkit.report.trackio import Trackio, require_trackio
from rlkit.report.wandb import WandB, require_wandb


@dataclass(frozen=True)
class TrackerKind:
    """require: raises UserError where its package is missing, before the folder of the run is made; takes `offline`."""

    label: str
    require: Callable[[bool], Any]
    open: Callable[[TrackerSettings, str], Tracker]  # with its project


# key in `report` -> the tracker
TRACKERS: dict[str, TrackerKind] = {
    "tensorboard": TrackerKind("TensorBoard", lambda offline: None, lambda s, project: TensorBoard(s.folder, s.config, s.attempt > 1)),
    "wandb": TrackerKind("W&B", require_wandb, WandB),
    "mlflow": TrackerKind("MLflow", require_mlflow, MLflow),
    "swanlab": TrackerKind("SwanLab", require_swanlab, SwanLab),
    "trackio": TrackerKind("Trackio", require_trackio, Trackio),
}
ALWAYS = {"tensorboard": ""}  # needs no key, no account and no server


def choose_trackers(settings: TrackerSettings) -> dict[str, str]:
    """The project of each tracker of a run, by its key. Raises UserError where a package is missing."""
    projects = {**ALWAYS, **settings.projects}
    for key in projects:
        TRACKERS[key].require(settings.offline)
    return projects
