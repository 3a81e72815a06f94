"""Computes one step of a run again, from the checkpoint before it, and compares it with what the run recorded.

The step runs in a folder of its own, as a resumed run would: same samples, rewards and updates, so that nothing differs where nothing was
changed. Left out: the evaluation after the step.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.assembly.build import build_run
from rlkit.assembly.model_record import RECORD
from rlkit.config.recipe import Recipe
from rlkit.errors import UserError
from rlkit.report.folder import METRICS, read_metrics
from rlkit.report.samples import read_step_samples
from rlkit.report.step_difference import Row, StepDifference, compare_metrics, compare_samples
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints
from rlkit.runtime.timer import PHASES
from rlkit.trainers.loop import resume, run_step
from rlkit.updates.micro_batch_fit import BUDGET_FILE


@dataclass(frozen=True)
class RecordedStep:
    """What a run wrote of a step. samples: those of the rollout, none of an offline algorithm."""

    metrics: Row
    samples: Sequence[Row]


@dataclass(frozen=True)
class ReplayedStep:
    """A step that was computed again. folder: what it wrote; seconds: by phase, recorded and now."""

    step: int
    folder: Path
    samples: list[StepDifference]
    metrics: list[StepDifference]
    seconds: dict[str, tuple[float | None, float | None]]

    @property
    def is_equal(self) -> bool:
        """Whether every value that was compared is the same to the bit."""
        return not any(difference.differing for difference in [*self.samples, *self.metrics])


def list_replayable_steps(run: Path) -> list[int]:
    """The reported steps of a run that have a checkpoint directly before them."""
    checkpoints = Checkpoints(run / CHECKPOINTS, every=0, keep=0, main=True, gather=lambda item: [item])
    reported = {row["step"] for row in read_metrics(run / METRICS)}
    return [step + 1 for step in checkpoints.list_steps() if step + 1 in reported]


def read_step(run: Path, step: int) -> RecordedStep:
    """What the run recorded of a step. Raises UserError where it has no row."""
    rows = [row for row in read_metrics(run / METRICS) if row["step"] == step]
    if not rows:
        raise UserError(f"{run / METRICS} has no row of step {step}")
    samples = [row for row in read_step_samples(run, step) if row["split"] == "train"]
    return RecordedStep(rows[0], samples)


def prepare_folder(run: Path, step: int, folder: Path, text: str) -> None:
    """A folder in which the recipe continues with this step: the run's own checkpoint, model record and micro-batch budget."""
    before = f"step-{step - 1:06d}"
    (folder / CHECKPOINTS).mkdir(parents=True)
    (folder / CHECKPOINTS / before).symlink_to(run / CHECKPOINTS / before, target_is_directory=True)
    (folder / "recipe.yaml").write_text(text)
    for name in (RECORD, BUDGET_FILE):
        if (run / name).is_file():
            shutil.copy(run / name, folder / name)


def replay_step(recipe: Recipe, text: str, run: Path, step: int, folder: Path) -> ReplayedStep:
    """Computes the step in `folder`, which prepare_folder made. `text`: the resolved recipe. Raises as a run does."""
    with build_run(recipe, text) as parts:
        after = run_step(parts, step, resume(parts))
        parts.report.log_step(step, (after.row or {}) | parts.timer.metrics())
    recorded, again = read_step(run, step), read_step(folder, step)
    seconds = {name: (recorded.metrics.get(f"time/{name}"), again.metrics.get(f"time/{name}")) for name in PHASES}
    return ReplayedStep(
        step,
        folder,
        compare_samples(recorded.samples, again.samples),
        compare_metrics(recorded.metrics, again.metrics),
        {name: pair for name, pair in seconds.items() if pair != (None, None)},
    )
