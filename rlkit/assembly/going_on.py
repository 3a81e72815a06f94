"""A run that goes on with more steps or more patience: whether it leaves anything to do, and what its learning rate is from here on.

The schedule is a function of the step and of the number of steps. So each further step has the learning rate that it has in a run of so
many steps from the start; steps that were done keep theirs. A schedule that fell steps up again where the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.assembly.common import build_schedule
from rlkit.assembly.context import require
from rlkit.assembly.run_folder import read_summary
from rlkit.config.recipe import Recipe
from rlkit.errors import UserError, list_some
from rlkit.report.folder import SUMMARY
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints
from rlkit.runtime.ranks import Ranks
from rlkit.trainers.selection import load_evaluations


@dataclass(frozen=True)
class RunProgress:
    """How far a run came; `steps`: that it was to have, `exhausted`: it stopped early, and would again, `kept`: its checkpoints."""

    done: int
    steps: int
    exhausted: bool
    finished: bool
    kept: list[int]


def go_on(recipe: Recipe, folder: Path, ranks: Ranks) -> list[tuple[str, str]]:
    """Lines of the header. Raises UserError, on all ranks, where nothing is left to do. A finished run is one no more from here on."""
    progress = read_run_progress(recipe, folder, ranks)
    if progress is None:
        return []
    if why := explain_nothing_left(recipe, progress, folder):
        raise UserError(why)
    if ranks.main:
        (folder / SUMMARY).unlink(missing_ok=True)
    return describe_going_on(recipe, progress)


def read_run_progress(recipe: Recipe, folder: Path, ranks: Ranks) -> RunProgress | None:
    """By the last checkpoint; None where there is none. Raises UserError where a finished run has lost it."""
    checkpoints = Checkpoints(folder / CHECKPOINTS, every=0, keep=0, main=ranks.main, gather=ranks.gather)
    summary: Mapping[str, Any] = ranks.gather(read_summary(folder))[0]
    last = checkpoints.find_last()
    if last is None:
        if summary.get("steps"):
            raise UserError(
                f"output_dir {folder} holds a finished run without its checkpoints, so it cannot go on; choose another output_dir"
            )
        return None
    state = checkpoints.read_state(last)
    try:
        exhausted = load_evaluations(state["evaluations"]).is_exhausted(last, recipe.eval.patience)
        return RunProgress(last, int(state["steps"]), exhausted, summary.get("status") == "done", checkpoints.list_steps())
    except (KeyError, TypeError, ValueError):
        return None  # of another form: the loop refuses it


def explain_nothing_left(recipe: Recipe, progress: RunProgress, folder: Path) -> str | None:
    """Why a run has no step to do; None where it has, or where it was killed before it was finished."""
    steps, done = require(recipe.steps), progress.done
    key = f"steps={steps}" if recipe.data.epochs is None else f"data.epochs={recipe.data.epochs:g}, {steps} steps"
    if steps < done or (steps == done and (progress.finished or progress.steps != steps)):
        kept = f"rlkit export {folder} step=N has the model of {list_some([*map(str, progress.kept)])}"
        return f"{key}: the run in output_dir {folder} has done {done} steps; it goes on with more than {done}, or {kept}"
    if progress.exhausted and progress.finished:
        return (
            f"output_dir {folder} holds a run that stopped early after step {done}, and eval.patience={recipe.eval.patience} would stop it "
            "there again; it goes on with a larger eval.patience, or null"
        )
    return None


def describe_going_on(recipe: Recipe, progress: RunProgress) -> list[tuple[str, str]]:
    """What another number of steps changes; empty where it is the same."""
    steps, done = require(recipe.steps), progress.done
    if steps == progress.steps or done >= steps:
        return []
    before, now = (build_schedule(recipe.model_copy(update={"steps": count})) for count in (progress.steps, steps))
    updates = recipe.updates_per_step
    was, rates = before.lr(done * updates - 1), [now.lr(step * updates - 1) for step in (done + 1, steps)]
    lr = f"lr {recipe.optim.schedule} {was:.3g} at step {done}" if done else f"lr {recipe.optim.schedule}"
    then = f"then as in a run of {steps} steps: {rates[0]:.3g} at step {done + 1}, {rates[1]:.3g} at step {steps}"
    same = done and rates == [was, was]
    return [("goes on", f"after step {done} of {progress.steps}, to step {steps}; {lr}, {'and the same from here on' if same else then}")]
