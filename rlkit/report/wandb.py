"""Weights & Biases, used only if the recipe asks for it. The only file that imports wandb."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import UserError


def require_wandb(offline: bool) -> Any:
    """The package wandb, told to stay offline if asked to. Raises UserError where it is missing."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read on import: else it sends crash reports to its makers
    if offline:
        os.environ["WANDB_MODE"] = "offline"
    try:
        import wandb
    except ImportError as error:
        raise UserError("the run asks for Weights & Biases, but the package is missing: pip install wandb, or wandb=null") from error
    return wandb


class WandB:
    """One W&B run, kept over resumes by the id in `folder`/wandb-id; offline it stays on disk for `wandb sync`.

    Raises UserError where the package or the login is missing.
    """

    def __init__(self, folder: Path, *, project: str, name: str, offline: bool) -> None:
        wandb = require_wandb(offline)
        known = folder / "wandb-id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:12])
        # The console is ours; its own metadata would send the command line with what secrets stand there.
        settings = wandb.Settings(console="off", silent=True, x_disable_meta=True)
        try:
            self._run = wandb.init(project=project, name=name, dir=folder, id=known.read_text(), resume="allow", settings=settings)
        except wandb.errors.UsageError as error:
            raise UserError(f"Weights & Biases refuses ({error}): log in with `wandb login`, or set offline=true, or wandb=null") from error
        # W&B's own step may only grow; a resumed run repeats some.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
