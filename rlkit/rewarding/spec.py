"""What a recipe says about rewards, and how its `path` becomes a function.

A path is one of: the name of a shipped reward (`accuracy`), a file and a function (`my_rewards.py:accuracy`, relative to the working
directory), a dotted name (`package.module:function` or `package.module.function`).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from rlkit.errors import UserError
from rlkit.runtime.paths import shipped
from rlkit.runtime.plugins import module_of_file


@dataclass(frozen=True)
class RewardSpec:
    """One line of a recipe's `rewards`: where the function is and what its score weighs.

    weight 0 only watches: the score is logged, its failures void nothing. args are handed to the function by name. deadline in seconds
    for one sample (None: that of the settings). gate: with combine=gate, nothing is earned where this score is 0 or less. An async
    function has at most `concurrency` samples under way in one worker.
    """

    name: str
    path: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    gate: bool = False
    concurrency: int = 32


class Kind(NamedTuple):
    """What kind of function a reward is, as the workers found it. settings: parameters that no column fills."""

    batch: bool
    is_async: bool
    settings: frozenset[str]


@dataclass(frozen=True)
class RewardSettings:
    """How rewards are run and put together.

    Seconds: deadline (one sample; times n for a batch of n), load_deadline (importing the reward files), cpu_seconds (CPU time of one
    sample, None: twice the deadline). memory_gib bounds what one worker may allocate. env names the variables of the environment that
    workers see. Above max_failure_rate, over the last 1,000 samples and from the third failure on, the run stops.
    normalise: `each` reward or their `sum` is brought to mean 0 and deviation 1 within its group.
    """

    workers: int = 2
    deadline: float = 10.0
    load_deadline: float = 120.0
    cpu_seconds: float | None = None
    memory_gib: float = 4.0
    env: tuple[str, ...] = ()
    max_failure_rate: float = 0.05
    combine: Literal["sum", "product", "gate"] = "sum"
    normalise: Literal["none", "each", "sum"] = "none"


@dataclass(frozen=True)
class Target:
    """Where a reward is: a file or a module (the other is None), and the function's name in it."""

    function: str
    file: Path | None = None
    module: str | None = None


def locate(path: str) -> Target:
    """Find what a reward's path speaks of, without importing it. Raises UserError for a name or a file that is not there."""
    head, colon, function = path.rpartition(":")
    if colon and (head.endswith(".py") or "/" in head):
        return Target(function, file=_existing_file(path, Path(head)))
    if colon:
        return Target(function, module=head)
    if path.endswith(".py") or "/" in path:
        raise UserError(f"reward {path!r} names a file but no function; write {path}:function_name")
    if path in shipped_names():
        return Target(path, file=shipped("rewards") / f"{path}.py")
    module, dot, function = path.rpartition(".")
    if dot:
        return Target(function, module=module)
    raise UserError(
        f"unknown reward {path!r}{_nearest(path, shipped_names())}; valid are {', '.join(shipped_names())}, "
        "a file and a function (my_rewards.py:accuracy), or a dotted name (package.module:function)"
    )


def resolve(path: str) -> Callable[..., Any]:
    """Import the function a reward's path speaks of. Raises UserError, with the nearest names, where it is not there."""
    target = locate(path)
    if target.file is not None:
        module, place = module_of_file(target.file), str(target.file)
    else:
        assert target.module is not None
        module, place = _module_of_name(path, target.module), f"module {target.module}"
    function = getattr(module, target.function, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    known = sorted(name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_"))
    nearest = _nearest(target.function, known)
    raise UserError(f"reward {path!r}: {place} has no function {target.function!r}{nearest}; it has {', '.join(known) or 'none'}")


def shipped_names() -> list[str]:
    """Names of the rewards that came with rlkit, each a file of that name with a function of that name."""
    return sorted(file.stem for file in shipped("rewards").glob("*.py") if not file.stem.startswith("_"))


def _existing_file(path: str, file: Path) -> Path:
    if file.is_file():
        return file.resolve()
    near = [other.name for other in file.resolve().parent.glob("*.py")] if file.resolve().parent.is_dir() else []
    raise UserError(f"reward {path!r}: no file {file.resolve()}{_nearest(file.name, near)}; a path is relative to the working directory")


def _module_of_name(path: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module is there; something that it imports is not
        message = f"reward {path!r}: no module {error.name!r} on the import path or in {here}{_nearest(path, shipped_names())}"
        raise UserError(message) from None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
