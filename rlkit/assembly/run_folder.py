"""The folder of a run: its name, and whether this recipe may go on in it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.config.identity import GOES_ON, list_changes
from rlkit.config.recipe import Recipe, get_at_path
from rlkit.config.renamed import rename_keys
from rlkit.errors import UserError
from rlkit.report.folder import METRICS, SUMMARY, read_metrics
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints
from rlkit.runtime.ranks import Ranks


def choose_folder(recipe: Recipe, text: str, ranks: Ranks) -> Path:
    """The run's folder, the same on all ranks. Raises UserError where it holds a finished run, one of another recipe, or damaged files."""
    now = ranks.gather(time.strftime("%Y-%m-%d_%H-%M-%S"))[0]
    folder = Path(recipe.output_dir or f"runs/{recipe.recipe}/{now}").expanduser().absolute()
    why = ranks.gather(explain_occupied(folder, text, recipe.resume) if ranks.main else None)[0]
    if why:
        raise UserError(why)
    checkpoints = Checkpoints(folder / CHECKPOINTS, every=0, keep=0, main=ranks.main, gather=ranks.gather)
    if (last := checkpoints.find_last()) is not None:
        checkpoints.check(last)
    return folder


def explain_occupied(folder: Path, text: str, resume: str) -> str | None:
    """Why this recipe cannot go on in a folder; None where it can, or where no run has come as far as a first row or checkpoint there."""
    written = folder / "recipe.yaml"
    if not has_begun(folder):
        return None
    if resume == "never":
        return f"output_dir {folder} holds a run already, and resume=never; choose another output_dir"
    import yaml

    try:
        before = yaml.safe_load(written.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        return f"{written} cannot be read, so it is not known which run output_dir holds; put it back, or choose another output_dir"
    before, now = rename_keys(before), yaml.safe_load(text)
    differences = list_changes(before, now)
    if not differences:
        return explain_finished(folder, before, now) or explain_damaged_log(folder / METRICS)
    shown = "\n".join(f"  {line}" for line in differences[:6])
    return f"output_dir {folder} holds a run of another recipe; what changed:\n{shown}\nchoose another output_dir, or put these back"


def explain_finished(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a run has ended, where none of the keys by which it could go on was changed; None elsewhere."""
    summary = read_summary(folder)
    if summary.get("status") != "done" or any(get_at_path(before, key.split(".")) != get_at_path(now, key.split(".")) for key in GOES_ON):
        return None
    early = "stopped_early" in summary
    what, how = (
        ("a run that stopped early,", "a larger eval.patience, or null") if early else ("a finished run", "more steps (or data.epochs)")
    )
    return f"output_dir {folder} holds {what} of {summary.get('steps')} steps; it goes on with {how}; or choose another output_dir"


def explain_damaged_log(rows: Path) -> str | None:
    """Why a run cannot append to this log; None where it can."""
    try:
        read_metrics(rows)
    except FileNotFoundError:
        return None
    except (OSError, UserError) as error:
        return str(error)
    return None


def has_begun(folder: Path) -> bool:
    """Whether a run in the folder left anything that another one would continue, or mix with its own."""
    rows = folder / METRICS
    return (rows.is_file() and rows.stat().st_size > 0) or any((folder / CHECKPOINTS).glob("step-*")) or "status" in read_summary(folder)


def read_summary(folder: Path) -> Mapping[str, Any]:
    """What a run wrote when it was done; empty where it is not, or where that cannot be read."""
    try:
        found = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
