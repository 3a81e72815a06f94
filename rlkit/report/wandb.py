"""Weights & Biases. The only file that imports wandb."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import UserError


def require_wandb(offline: bool) -> Any:
    """Imports wandb, offline if wanted. Raises UserError where it is missing."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; by default wandb sends crash reports to its makers
    if offline:
        os.environ["WANDB_MODE"] = "offline"
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError("report.wandb needs the package wandb: pip install wandb, or set report.wandb=null") from error
    return wandb


class WandB:
    """One W&B run. Its id is kept in `folder`/wandb-id, so that a resume continues it; offline it stays on disk for `wandb sync`.

    Raises UserError where the package or the login is missing.
    """

    def __init__(self, folder: Path, *, project: str, name: str, offline: bool) -> None:
        wandb = require_wandb(offline)
        id_file = folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        # No console, because rlkit has its own; no metadata, because it holds the command line with its secrets.
        settings = wandb.Settings(console="off", silent=True, x_disable_meta=True)
        try:
            self._run = wandb.init(project=project, name=name, dir=folder, id=id_file.read_text(), resume="allow", settings=settings)
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

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()
