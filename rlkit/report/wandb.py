"""Weights & Biases. The only file that imports wandb.

Telemetry: WANDB_ERROR_REPORTING=false turns off crash reports and the library's own measurements. Not sent: the console, the command line,
code, and the state of git.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import UserError
from rlkit.report.tracker import TrackerSettings

EXIT_CODES = {"done": 0, "stopped": 255, "failed": 1}  # W&B calls a run that ended with 255 killed


def require_wandb(offline: bool) -> Any:
    """Imports wandb, offline if wanted. Raises UserError where it is missing."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import
    if offline:
        os.environ["WANDB_MODE"] = "offline"
    try:
        import wandb
    except ImportError as error:
        raise UserError("report.wandb needs the package wandb: pip install wandb, or set report.wandb=null") from error
    return wandb


class WandB:
    """One W&B run. Its id is kept in RUN/wandb-id, so that a resume continues it; offline it stays in RUN/wandb for `wandb sync`.

    Raises UserError where the package or the login is missing.
    """

    def __init__(self, settings: TrackerSettings, project: str) -> None:
        self._wandb = wandb = require_wandb(settings.offline)
        id_file = settings.folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        # No console, because rlkit has its own; no metadata, because it holds the command line with its secrets. Offline no measurements of
        # the machine, for which it asks a cloud's metadata server.
        options = wandb.Settings(
            console="off", silent=True, x_disable_meta=True, disable_git=True, disable_code=True, x_disable_stats=settings.offline
        )
        try:
            self._run = wandb.init(
                project=project,
                name=settings.name,
                group=settings.group[:128],
                tags=[tag[:64] for tag in settings.tags],  # as long as W&B takes them
                config=dict(settings.config),
                dir=settings.folder,
                id=id_file.read_text(),
                resume="allow",
                settings=options,
            )
        except wandb.errors.UsageError as error:
            raise UserError(
                f"Weights & Biases refuses the run ({error}): log in with `wandb login`, set offline=true, or set report.wandb=null"
            ) from error
        # W&B's own step may only increase, and a resumed run repeats steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        self._run.log({"step": step, **metrics})

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Send a table of samples."""
        columns = list(samples[0])
        rows = [[sample[column] for column in columns] for sample in samples]
        self._run.log({"step": step, f"samples/{samples[0]['split']}": self._wandb.Table(columns=columns, data=rows)})

    def close(self, state: str) -> None:
        """Finish the W&B run: finished, killed or failed."""
        self._run.finish(exit_code=EXIT_CODES[state])
