"""Computes a step of a run again: `rlkit replay RUN [step=N] [key=value ...] [--json]`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit.cli.evaluate import stdout_as_stderr
from rlkit.cli.output import print_document, print_text
from rlkit.cli.words import split_model, split_own_keys
from rlkit.config.compose import compose_recipe, quote
from rlkit.config.recipe import read_recipe
from rlkit.errors import EXIT_DONE, UserError, list_some
from rlkit.report.table import format_table
from rlkit.run import handle_errors
from rlkit.runtime.library_settings import configure_libraries

if TYPE_CHECKING:
    from rlkit.assembly.replay import ReplayedStep

USAGE = "rlkit replay RUN [step=N] [key=value ...]"
# Of the recipe, before the words: the step alone is computed, and reported nowhere else.
ALONE = (
    *("eval.every=0", "eval.patience=null", "checkpoint.every=0", "checkpoint.best=false"),
    *(f"report.{name}=null" for name in ("wandb", "mlflow", "swanlab", "trackio", "prometheus")),
    *("report.dump_steps=[]", "report.tokens=all", "report.audit_key=null"),
)


def run_replay(arguments: list[str], as_json: bool) -> int:
    """Prints how a step that is computed again differs from what was recorded. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return handle_errors(lambda: print_replay(arguments, as_json), arguments)


def print_replay(arguments: list[str], as_json: bool) -> int:
    """As run_replay. Raises UserError."""
    name, words = split_model(arguments, USAGE)
    run = Path(name).expanduser().absolute()
    own, words = split_own_keys(words, ("step",))
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{name} is not the folder of a run: it has no recipe.yaml")
    from rlkit.assembly.replay import list_replayable_steps

    steps = list_replayable_steps(run)
    if "step" not in own:
        print_replayable(run, steps, as_json)
        return EXIT_DONE
    if own["step"] not in map(str, steps):
        raise UserError(
            f"step={own['step']} of {name} cannot be replayed: it needs a row in metrics.jsonl and the checkpoint before it. "
            f"These can: {list_some([str(step) for step in steps]) if steps else 'none'}. "
            "report.dump_steps=[N] keeps the checkpoint before a step, checkpoint.every=1 and checkpoint.keep those of the last ones"
        )
    if as_json:
        with stdout_as_stderr():
            replay = compute_replay(run, int(own["step"]), words)
        print_document(asdict(replay) | {"is_equal": replay.is_equal})
    else:
        print_text(describe_replay(compute_replay(run, int(own["step"]), words)))
    return EXIT_DONE


def print_replayable(run: Path, steps: Sequence[int], as_json: bool) -> None:
    if as_json:
        print_document({"run": str(run), "steps": list(steps)})
    else:
        shown = ", ".join(map(str, steps)) if steps else "none: no checkpoint of it stands before a step that was reported"
        print_text(f"steps of {run} that can be replayed: {shown}")


def compute_replay(run: Path, step: int, words: Sequence[str]) -> ReplayedStep:
    """The step in a new folder. words: key=value, in place of what the run had. Raises UserError."""
    folder = run / "replayed" / f"step-{step:06d}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    composed = compose_recipe([str(run / "recipe.yaml"), *ALONE, *words, f"output_dir={quote(folder)}"], None)
    recipe = read_recipe(composed.config)
    configure_libraries(offline=recipe.offline)
    _set_threads(run)
    from rlkit.assembly.replay import prepare_folder, replay_step

    prepare_folder(run, step, folder, composed.text)
    try:
        return replay_step(recipe, composed.text, run, step, folder)
    except UserError:
        shutil.rmtree(folder)  # nothing was computed
        raise


def _set_threads(run: Path) -> None:
    """Computes with as many threads as the run did, whatever the environment has: with others, float32 is rounded in another order."""
    threads = json.loads((run / "environment.json").read_bytes())["hardware"]["threads"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def describe_replay(replay: ReplayedStep) -> str:
    """The differences in a few lines for a person; the equal metrics in one."""
    equal = [found for found in replay.metrics if not found.differing]
    changed = [found for found in replay.metrics if found.differing]
    rows = [[found.name, found.describe()] for found in replay.samples if found.compared]
    rows.append(["metrics", f"{len(equal)} of {len(replay.metrics)} equal"])
    rows += [[f"  {found.name}", found.first] for found in changed]
    verdict = "equal to the bit" if replay.is_equal else "it differs"
    return "\n".join([f"step {replay.step} again: {verdict}", format_table(rows), f"folder {replay.folder}"])
