"""Rewards as Python objects: from the argument `rewards` to the section of a recipe.

A function at the top of an importable file is named by its file, so that the recipe of the run can be run again. Any other is pickled by
cloudpickle, with the variables that it uses.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.python_functions import PREFIX, Parameters, PythonFunction

TAKEN = "rewards takes a function, a path, or a list of them, or a mapping of names to them"


def collect_rewards(rewards: Any) -> tuple[dict[str, dict[str, Any]], dict[str, PythonFunction]]:
    """The section `rewards` of a recipe, and the functions that no file holds, by path. Raises UserError for what is no reward."""
    named = dict(rewards) if isinstance(rewards, Mapping) else _name_rewards(rewards)
    if not named:
        raise UserError(f"rewards={rewards!r} is empty; {TAKEN}")
    section: dict[str, dict[str, Any]] = {}
    found: dict[str, PythonFunction] = {}
    for name, given in named.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"rewards: {name!r} is no name: letters, digits and _")
        keys = dict(given) if isinstance(given, Mapping) else {"path": given}
        reward = keys.get("path")
        if callable(reward):
            path = find_path(reward)
            if path is None:
                path = f"{PREFIX}{name}"
                found[path] = pickle_function(name, reward)
            keys["path"] = path
        elif isinstance(reward, Path):
            keys["path"] = str(reward)
        elif not isinstance(reward, str):
            raise UserError(f"rewards: {name} is {given!r:.80}, no function and no path; {TAKEN}")
        section[name] = keys
    return section, found


def find_path(function: Callable[..., Any]) -> str | None:
    """FILE:NAME or MODULE:NAME of an object at the top of a file that another process can import; None of any other."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__" or not str(file).endswith(".py") or getattr(module, name, None) is not function:
        return None
    # a file of a package may import its neighbours by dots, which takes its name
    return f"{module.__name__}:{name}" if module.__package__ else f"{Path(str(file)).resolve()}:{name}"


def pickle_function(name: str, function: Callable[..., Any]) -> PythonFunction:
    """The pickle of a function and of what it uses. Raises UserError where that cannot be sent to another process."""
    import cloudpickle

    try:
        pickled = cloudpickle.dumps(function)
    except Exception as error:  # whatever the __reduce__ of an object that the function uses raises
        raise UserError(
            f"rewards.{name} cannot be sent to the reward workers: {error}\nit uses a variable that lives in this process alone (a lock, a "
            "client, an open file): make it inside the function, or write the function into a file and import it"
        ) from error
    return PythonFunction(pickled, read_parameters(function))


def read_parameters(function: Callable[..., Any]) -> Parameters:
    """The parameters of a function; none of a class, whose object gets them, and none where Python does not show them."""
    if inspect.isclass(function):
        return Parameters(frozenset(), frozenset())
    try:
        found = [p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    except (TypeError, ValueError):
        found = []
    return Parameters(frozenset(p.name for p in found), frozenset(p.name for p in found if p.default is p.empty))


def _name_rewards(rewards: Any) -> dict[str, Any]:
    """The rewards of a list by the names of their functions: score, score_2."""
    named: dict[str, Any] = {}
    for reward in rewards if isinstance(rewards, list | tuple) else [rewards]:
        name = base = _suggest_name(reward)
        count = 1
        while name in named:
            count += 1
            name = f"{base}_{count}"
        named[name] = reward
    return named


def _suggest_name(reward: Any) -> str:
    while isinstance(reward, functools.partial):
        reward = reward.func
    own = getattr(reward, "__name__", None) or type(reward).__name__
    if isinstance(reward, str | Path):
        own = re.split(r"[:./]", str(reward))[-1]
    name = re.sub(r"\W+", "_", own).strip("_").lower()
    return "reward" if not name or name == "lambda" or name[0].isdigit() else name
