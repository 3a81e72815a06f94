"""The model that a command is given: the folder of a run, or a model in any form of model.path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.assembly.model_files import ADAPTERS, describe_content, read_config
from rlkit.assembly.run_folder import read_summary
from rlkit.cli.export import choose_step, export_model, open_checkpoints, read_run
from rlkit.config.compose import Composed, compose_recipe, quote
from rlkit.config.recipe import Recipe, read_recipe
from rlkit.errors import UserError
from rlkit.report.status import read_run_status
from rlkit.runtime.model_path import PACKAGE

CONFIG = "config.json"
NO_TASK = ("recipe=grpo", "data.train=none", "max_prompt_tokens=1", "max_completion_tokens=1")  # of a model that only answers
SCORER = "ForSequenceClassification"  # how the name of the class of a reward model ends


@dataclass(frozen=True)
class ModelSource:
    """`path`: the model, a folder or another form of model.path; `step`: of the run whose model it is; `run`: its folder.

    `exported` is False where the folder `path` is still to be written, from the checkpoint of this step.
    """

    path: str
    run: Path | None = None
    step: int | None = None
    exported: bool = True

    def write(self) -> None:
        """Writes the folder where it is not there. Raises UserError."""
        if not self.exported:
            export_model(Path(str(self.run)), form="merged", step=str(self.step), to=self.path)


def find_source(name: str, step: str | None = None) -> ModelSource:
    """The model that a command is given; step: a number, or "best". Raises UserError for what is no run and no model."""
    folder = Path(name).expanduser()
    if (folder / "recipe.yaml").is_file():
        return find_trained(folder.absolute(), step)
    if step is not None:
        raise UserError(f"step={step} is of a run, and {name} is not the folder of one (it has no recipe.yaml)")
    if folder.is_dir() and not (folder / CONFIG).is_file():
        adapter = "; it holds LoRA adapters alone: rlkit export RUN as=merged writes a whole model" if (folder / ADAPTERS).is_file() else ""
        raise UserError(f"{name} is no run (it has no recipe.yaml) and no model (no {CONFIG}); {describe_content(folder)}{adapter}")
    if not folder.exists() and not name.startswith(PACKAGE) and folder.parent != Path() and folder.parent.is_dir():
        raise UserError(f"{name} does not exist; name the folder of a run or of a model")  # and is no OWNER/NAME of the hub
    check_writes_text(folder, name)
    return ModelSource(str(folder.absolute()) if folder.is_dir() else name)


def find_trained(run: Path, step: str | None) -> ModelSource:
    """The model of a run: what it wrote at its end, or what `rlkit export` writes of a checkpoint, where it stands."""
    recipe, _ = read_run(run)
    if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model":
        raise UserError(f"{run} trained a reward model, which gives scores and writes no text; rlkit export {run} writes it")
    checkpoints, final = open_checkpoints(run), run / "model"
    steps, exported = checkpoints.list_steps(), read_model_step(run)
    is_whole = exported is not None and (final / CONFIG).is_file()
    if is_whole and step is None:
        return ModelSource(str(final), run, exported)
    number = choose_step(checkpoints, str(exported) if step is None and exported in steps else step)
    if is_whole and number == exported:
        return ModelSource(str(final), run, number)
    folder = run / f"model-{number:06d}"
    if folder.exists() and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no whole model (it has no {CONFIG}); delete it, or move it away, so that it is written anew")
    if folder.exists() and folder.stat().st_mtime < checkpoints.get_folder(number).stat().st_mtime:
        raise UserError(f"{folder} is older than the checkpoint of step {number}; delete it, so that it is written anew")
    return ModelSource(str(folder), run, number, exported=folder.exists())


def read_model_step(run: Path) -> int | None:
    """The step of the model that a finished run exported: the last, or with checkpoint.best=export the best; None of an unfinished run."""
    status = read_run_status(run)
    if status is None or status.state != "done":
        return None
    summary = read_summary(run)
    try:
        selected = (summary.get("selected") or {}).get("model_step")
        return int(summary["steps"] if selected is None else selected)
    except (ValueError, KeyError, TypeError, AttributeError):  # damaged: the checkpoints are looked at
        return None


def check_writes_text(folder: Path, name: str) -> None:
    """Raises UserError for a folder with a model that gives scores."""
    classes = read_config(folder, name).get("architectures") if folder.is_dir() else None
    if isinstance(classes, list) and any(str(kind).endswith(SCORER) for kind in classes):
        raise UserError(f"{name} is a reward model ({classes[0]}), which gives scores and writes no text")


def compose_source(source: ModelSource, words: Sequence[str]) -> Composed:
    """The recipe of a run, or that of `words`, with this model in place of its own. Raises UserError for a word that is no key of it."""
    named = any(word.startswith("recipe=") for word in words)
    base = [str(source.run / "recipe.yaml")] if source.run and not named else []
    here = ["model.revision=null"] if source.run else []
    return compose_recipe([*base, *words, f"model.path={quote(source.path)}", *here], None)


def read_model_settings(source: ModelSource, words: Sequence[str]) -> Recipe:
    """The recipe that says how a model that only answers is loaded: that of its run, or the default. Raises UserError."""
    base = () if source.run else NO_TASK
    return read_recipe(compose_source(source, [*base, *words]).config)
