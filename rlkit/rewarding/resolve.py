"""From the `path` of a reward to its function.

A path is one of: the name of a shipped reward (`accuracy`), a file and a function (`my_rewards.py:accuracy`, relative to the working
directory), a dotted name (`package.module:function` or `package.module.function`). `rlkit.train` also writes `python:NAME` for a function
that no file holds (python_functions.py).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.python_functions import find_registered
from rlkit.runtime.paths import find_bundled_folder
from rlkit.runtime.plugins import import_file


@dataclass(frozen=True)
class RewardLocation:
    """The file or the module of a reward (the other is None), and the name of the function in it. Both are None for python:NAME."""

    function: str
    file: Path | None = None
    module: str | None = None


def locate_reward(path: str) -> RewardLocation:
    """Find the function of a path without importing it. Raises UserError where the name or the file does not exist."""
    head, colon, function = path.rpartition(":")
    if find_registered(path):
        return RewardLocation(function)
    if colon and (head.endswith(".py") or "/" in head):
        return RewardLocation(function, file=_find_file(path, Path(head)))
    if colon:
        return RewardLocation(function, module=head)
    if path.endswith(".py") or "/" in path:
        raise UserError(f"reward {path!r} names a file but no function; write {path}:function_name")
    if path in list_shipped_rewards():
        return RewardLocation(path, file=find_bundled_folder("rewards") / f"{path}.py")
    module, dot, function = path.rpartition(".")
    if dot:
        return RewardLocation(function, module=module)
    raise UserError(
        f"unknown reward {path!r}{_suggest(path, list_shipped_rewards())}; valid are {', '.join(list_shipped_rewards())}, "
        "a file and a function (my_rewards.py:accuracy), or a dotted name (package.module:function)"
    )


def import_reward(path: str) -> Callable[..., Any]:
    """Import the function of a path. Raises UserError, with similar names, where it does not exist."""
    location = locate_reward(path)
    if location.file is not None:
        module, place = import_file(location.file), str(location.file)
    else:
        assert location.module is not None
        module, place = _import_module(path, location.module), f"module {location.module}"
    function = getattr(module, location.function, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    known = sorted(name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_"))
    similar = _suggest(location.function, known)
    raise UserError(f"reward {path!r}: {place} has no function {location.function!r}{similar}; it has {', '.join(known) or 'none'}")


def list_shipped_rewards() -> list[str]:
    """Names of the rewards that come with rlkit: each is a file, with a function of the same name."""
    return sorted(file.stem for file in find_bundled_folder("rewards").glob("*.py") if not file.stem.startswith("_"))


def _find_file(path: str, file: Path) -> Path:
    if file.is_file():
        return file.resolve()
    folder = file.resolve().parent
    others = [other.name for other in folder.glob("*.py")] if folder.is_dir() else []
    raise UserError(f"reward {path!r}: no file {file.resolve()}{_suggest(file.name, others)}; a path is relative to the working directory")


def _import_module(path: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module exists; something that it imports does not
        similar = _suggest(path, list_shipped_rewards())
        raise UserError(f"reward {path!r}: no module {error.name!r} on the import path or in {here}{similar}") from None


def _suggest(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""
