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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.python_functions import find_registered
from rlkit.runtime.paths import find_bundled_folder
from rlkit.runtime.plugins import import_file

UNKNOWN = {"reward": "unknown reward", "environment": "unknown environment"}  # whole, as one looks for a message


@dataclass(frozen=True)
class RewardLocation:
    """The file or the module of a reward (the other is None), and the name of the function in it. Both are None for python:NAME."""

    function: str
    file: Path | None = None
    module: str | None = None


def locate_reward(path: str) -> RewardLocation:
    """Find the function of a path without importing it. Raises UserError where the name or the file does not exist."""
    if find_registered(path):
        return RewardLocation(path.rpartition(":")[2])
    if path in list_shipped_rewards():
        return RewardLocation(path, file=find_bundled_folder("rewards") / f"{path}.py")
    return locate_object(path, "reward", list_shipped_rewards(), "my_rewards.py:accuracy")


def locate_object(path: str, what: str, shipped: Sequence[str], example: str) -> RewardLocation:
    """Find what a path names in a file or a module, as locate_reward does. what, shipped, example: for messages."""
    head, colon, name = path.rpartition(":")
    if colon and (head.endswith(".py") or "/" in head):
        return RewardLocation(name, file=_find_file(path, Path(head), what))
    if colon:
        return RewardLocation(name, module=head)
    if path.endswith(".py") or "/" in path:
        raise UserError(f"{what} {path!r} names a file but no function; write {path}:function_name")
    module, dot, name = path.rpartition(".")
    if dot:
        return RewardLocation(name, module=module)
    raise UserError(
        f"{UNKNOWN[what]} {path!r}{suggest_names(path, shipped)}; valid are {', '.join(shipped)}, "
        f"a file and a function ({example}), or a dotted name (package.module:function)"
    )


def import_reward(path: str) -> Callable[..., Any]:
    """Import the function of a path. Raises UserError, with similar names, where it does not exist."""
    return import_object(path, locate_reward(path), "reward", list_shipped_rewards())


def import_object(path: str, location: RewardLocation, what: str, shipped: Sequence[str]) -> Callable[..., Any]:
    """Import the function or the class at a location. Raises UserError as import_reward."""
    if location.file is not None:
        module, place = import_file(location.file), str(location.file)
    else:
        assert location.module is not None
        module, place = _import_module(path, location.module, what, shipped), f"module {location.module}"
    found = getattr(module, location.function, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    known = sorted(name for name, value in vars(module).items() if _is_shown(name, value, module))
    similar = suggest_names(location.function, known)
    raise UserError(f"{what} {path!r}: {place} has no function {location.function!r}{similar}; it has {', '.join(known) or 'none'}")


def list_shipped_rewards() -> list[str]:
    """Names of the rewards that come with rlkit: each is a file, with a function of the same name."""
    return sorted(file.stem for file in find_bundled_folder("rewards").glob("*.py") if not file.stem.startswith("_"))


def _is_shown(name: str, value: Any, module: ModuleType) -> bool:
    own_class = inspect.isclass(value) and value.__module__ == module.__name__
    return (inspect.isfunction(value) or own_class) and not name.startswith("_")


def _find_file(path: str, file: Path, what: str) -> Path:
    if file.is_file():
        return file.resolve()
    folder = file.resolve().parent
    others = [other.name for other in folder.glob("*.py")] if folder.is_dir() else []
    raise UserError(
        f"{what} {path!r}: no file {file.resolve()}{suggest_names(file.name, others)}; a path is relative to the working directory"
    )


def _import_module(path: str, module: str, what: str, shipped: Sequence[str]) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module exists; something that it imports does not
        similar = suggest_names(path, shipped)
        raise UserError(f"{what} {path!r}: no module {error.name!r} on the import path or in {here}{similar}") from None


def suggest_names(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: those that are similar, in brackets, or nothing."""
    similar = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""
