"""The disk that a run fills: its checkpoints and the model at the end. Left out: logs and samples."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlkit.assembly.capacity import format_gib
from rlkit.assembly.plan import build_job
from rlkit.config.recipe import Recipe

DISK = "disk"  # the label of the line
CHECKPOINT_BYTES = 12  # of a trained weight: itself and two moments, in float32


def describe_disk(recipe: Recipe) -> list[tuple[str, str]]:
    """What the folder of the run holds at most, where the shape of the model is known."""
    job = build_job(recipe)
    if job is None:
        return []
    checkpoint = CHECKPOINT_BYTES * (job.trained + (job.shape.parameters if job.critic else 0))
    model = job.width * (job.trained if recipe.checkpoint.export == "adapter" else job.shape.parameters)
    dumps = len(recipe.report.dump_steps)
    count = recipe.checkpoint.keep + bool(recipe.checkpoint.best) + dumps + 1
    best = ", the best" if recipe.checkpoint.best else ""
    dumped = f", {dumps} for report.dump_steps" if dumps else ""
    kept = f"{recipe.checkpoint.keep} newest{best}{dumped} and the one that is written"
    total = count * checkpoint + model
    free = shutil.disk_usage(find_existing(Path(recipe.output_dir or ".").expanduser().absolute())).free
    what = f"at most {format_gib(total)} of {format_gib(free)} free"
    return [(DISK, f"{what}: {count} checkpoints ({kept}) of {format_gib(checkpoint)}, and model/ of {format_gib(model)}")]


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())
