"""rlkit from Python: the functions of `import rlkit`. A run is a child process, so that a notebook can start one after another.

Left out: runs on several GPUs or machines, which launch/ starts from a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.api.child import run_child
from rlkit.api.functions import collect_rewards
from rlkit.api.result import Result
from rlkit.api.rows import collect_data
from rlkit.api.words import build_words, name_recipe
from rlkit.cli.export import export_model
from rlkit.errors import RunFailed, UserError

if TYPE_CHECKING:
    from rlkit.config.recipe import Recipe

__all__ = ["Result", "dry_run", "evaluate", "export_model", "load_recipe", "train"]


def train(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    rewards: Any = None,
    data: Any = None,
    config_dir: str | Path | None = None,
    **keys: Any,
) -> Result:
    """Trains in a child process, shows its lines as they come, and returns what it left behind.

    recipe: the name of one, or a run's own recipe.yaml. overrides and keys: what the recipe shall have instead, `{"optim.lr": 1e-4}`,
    steps=5, optim={"lr": 1e-4}; where both set a key, keys win.
    rewards: take the place of the recipe's rewards. A function, a path as in a recipe, or a list of them; or a mapping of names to them, or
    to the keys of a reward with a function as its path: {"short": {"path": my_function, "weight": 0.5}}.
    data: the training rows, as a list of dicts, a datasets.Dataset, a pandas DataFrame or a path; or a mapping of keys of the section
    `data`, whose train and test are any of these.
    config_dir: a folder with recipes of your own.
    Interrupted (Ctrl-C, or Stop in a notebook), the run saves a checkpoint; interrupted again, it ends at once.

    Raises UserError for a mistake in the recipe, the data or a reward, Stopped where the run was stopped and can be resumed (output_dir=
    of its folder), RunFailed for anything else. All are in rlkit.errors.
    """
    if keys.get("dry_run") or (overrides or {}).get("dry_run"):
        raise UserError("dry_run=True trains nothing, and rlkit.train returns what a run left behind: call rlkit.dry_run(...)")
    folder = _run(recipe, overrides, rewards, data, config_dir, keys)
    if folder is None:
        raise RunFailed("the run ended without a folder; see its output")
    return Result(folder)


def dry_run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    rewards: Any = None,
    data: Any = None,
    config_dir: str | Path | None = None,
    **keys: Any,
) -> None:
    """Prints the plan of a run, with a prompt of the data, and trains nothing. Arguments as in train.

    Raises UserError for what a run would refuse.
    """
    _run(recipe, overrides, rewards, data, config_dir, keys | {"dry_run": True})


def evaluate(
    model: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    recipe: str | None = None,
    step: int | str | None = None,
    data: Any = None,
    rewards: Any = None,
    **keys: Any,
) -> dict[str, Any]:
    """Evaluates a model in a child process, as `rlkit eval`; returns what result.json holds: accuracy, reward, intervals, metrics, folder.

    model: the folder of a run, or a model. recipe: the name of the task, for a model that is of no run. step: of a run, or "best".
    data: the held-out rows, data.test, in the forms of train. rewards: in the forms of train, in place of those of their names; those that
    a run got as Python objects are asked for again. Raises as train.
    """
    section, functions = collect_rewards(rewards) if rewards is not None else ({}, {})
    chosen = {"recipe": recipe, "step": None if step is None else str(step)}
    tested = collect_data(data if isinstance(data, Mapping) or data is None else {"test": data})
    words = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    words += build_words({**tested, **(overrides or {}), **keys, **({"rewards": section} if section else {})})
    folder = run_child([str(model), *words], None, functions, action="evaluate")
    if folder is None:
        raise RunFailed("the evaluation ended without a folder; see its output")
    return dict(json.loads((folder / "result.json").read_text()))


def load_recipe(
    recipe: str | Path, overrides: Mapping[str, Any] | None = None, *, config_dir: str | Path | None = None, **keys: Any
) -> Recipe:
    """The typed recipe: every key as an attribute, `.optim.lr`. Arguments as in train. Raises UserError where it is not valid."""
    from rlkit.config.compose import compose_config
    from rlkit.config.recipe import read_recipe

    words = [name_recipe(recipe), *build_words({**(overrides or {}), **keys})]
    return read_recipe(compose_config(words, Path(config_dir).absolute() if config_dir else None))


def _run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None,
    rewards: Any,
    data: Any,
    config_dir: str | Path | None,
    keys: Mapping[str, Any],
) -> Path | None:
    """The folder of the run; None where it made none."""
    flags = ["--config-dir", str(config_dir)] if config_dir else []
    words = [*flags, name_recipe(recipe), *build_words({**collect_data(data), **(overrides or {}), **keys})]
    replaced, functions = collect_rewards(rewards) if rewards is not None else (None, {})
    return run_child(words, replaced, functions)
