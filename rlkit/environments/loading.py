"""Loads an environment and recognises its shape by what it has, so that environments and tools of other toolkits run unchanged.

functions       f(a: int) -> anything, sync or async: each is a tool; the episode has no reward of its own
a class
  TRL           reset(**row) opens; every other public method is a tool; get_reward() -> number, where it has one
  Gymnasium     reset(seed=...) -> (text, info); step(text) -> (text, reward, terminated, truncated, info)          and GEM
  SkyRL         __init__(env_config, extras=row); init(messages) -> (messages, info); step(text) -> {observations, reward, done, ...}
  OpenEnv       a client: reset(seed=...) and step(action) -> observation, reward, done; a turn of the policy becomes its action

In place of a class, a function with args is called with them for each episode and returns such an object (gymnasium.make).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.environments.job import ONLY, EnvironmentKind, WorkerEnvironment
from rlkit.environments.openenv import METHODS
from rlkit.environments.schemas import build_schema
from rlkit.errors import UserError
from rlkit.rewarding.resolve import import_object, locate_object

FUNCTIONS, TRL_CLASS, GYMNASIUM, SKYRL, OPENENV = "functions", "class of tools", "reset and step", "init and step", "OpenEnv client"
RESERVED = {"reset", "get_reward", "get_metrics", "close"}  # public methods of a class of tools that are none
SHIPPED = {  # name -> module of rlkit.environments.shipped and the name in it
    "calculator": "calculator:calculator",
    "guess_number": "guess_number:GuessNumber",
    "python": "python:Python",
    "search": "search:Search",
    "wordle": "wordle:Wordle",
}
EXAMPLE = "my_env.py:Wordle"


@dataclass(frozen=True)
class LoadedEnvironment:
    """An imported environment. make: gives the object of an episode, from the row where it asks for it. functions: the tools, by name: of
    functions as they are, of a class unbound."""

    name: str
    kind: EnvironmentKind
    make: Callable[..., Any] | None
    functions: Mapping[str, Callable[..., Any]]

    @property
    def where(self) -> str:
        """For messages."""
        return f"environment.path {self.name}".rstrip()


def split_path(path: str) -> list[str]:
    """The parts of a path: several functions are separated by commas."""
    return [part.strip() for part in path.split(",") if part.strip()]


def locate_environment(path: str) -> list[Path]:
    """The files that a path names. Raises UserError where a part of it names no file and nothing shipped; imports nothing."""
    own = [part for part in split_path(path) or [path] if part not in SHIPPED]
    found = [locate_object(part, "environment", sorted(SHIPPED), EXAMPLE).file for part in own]
    return [file for file in found if file is not None]


def load_environment(environment: WorkerEnvironment, known: EnvironmentKind | None = None) -> LoadedEnvironment:
    """Import an environment and recognise its shape. known: what an earlier worker found out, which is not looked for again.

    Raises UserError where it has no shape, its tools have no schema, or its args fit nothing.
    """
    where, args = f"environment.path={environment.path}", dict(environment.args)
    parts = split_path(environment.path)
    found = [_import_part(part) for part in parts]
    if len(found) == 1 and (inspect.isclass(found[0]) or args):
        return _load_object(environment.name, found[0], args, where, known)
    if classes := [part for part, one in zip(parts, found, strict=True) if inspect.isclass(one)]:
        raise UserError(f"{where}: {classes[0]} is a class, which stands alone; only functions are combined by commas")
    if args:
        raise UserError(f"{where}: functions take no args, which are for a class; here args={args}")
    functions = {_name_of(one, part): one for part, one in zip(parts, found, strict=True)}
    if len(functions) < len(parts):
        raise UserError(
            f"{where}: two tools have the same name; the names are {', '.join(_name_of(*pair) for pair in zip(found, parts, strict=True))}"
        )
    return LoadedEnvironment(environment.name, known or _describe(FUNCTIONS, functions, None, where), None, functions)


def _import_part(part: str) -> Callable[..., Any]:
    path = part
    if part in SHIPPED:
        path = f"rlkit.environments.shipped.{SHIPPED[part]}"
    return import_object(path, locate_object(path, "environment", sorted(SHIPPED), EXAMPLE), "environment", sorted(SHIPPED))


def _name_of(function: Callable[..., Any], part: str) -> str:
    return str(getattr(function, "__name__", part.rpartition(":")[2]))


def _load_object(name: str, made: Callable[..., Any], args: dict[str, Any], where: str, known: EnvironmentKind | None) -> LoadedEnvironment:
    make = _Maker(made, args, where)
    kind = made if inspect.isclass(made) else _find_class(made, args)
    shape = _detect_shape(kind, where)
    functions = _list_tools(kind) if shape == TRL_CLASS else {}
    if shape == TRL_CLASS and not functions:
        raise UserError(
            f"{where}: {kind.__name__} has no public method beside reset, so it has no tools; it needs methods that the policy calls, or "
            "step(action) beside reset or init"
        )
    return LoadedEnvironment(name, known or _describe(shape, functions, kind, where), make, functions)


def _find_class(factory: Callable[..., Any], args: dict[str, Any]) -> type:
    """What a factory makes: one is made to see it."""
    one = factory(**args)
    if callable(closing := getattr(one, "close", None)) and not inspect.iscoroutinefunction(closing):
        closing()
    return type(one)


def _detect_shape(kind: type, where: str) -> str:
    has = {name for name in ("init", "reset", "step") if callable(getattr(kind, name, None))}
    if all(callable(getattr(kind, name, None)) for name in METHODS):
        return OPENENV
    if callable(getattr(kind, "get_reward", None)):
        return TRL_CLASS  # where `step` is a tool like others
    if {"init", "step"} <= has:
        return SKYRL
    if {"reset", "step"} <= has:
        return GYMNASIUM
    if "step" in has:
        raise UserError(f"{where}: {kind.__name__} has step but neither reset (Gymnasium, GEM) nor init (SkyRL)")
    return TRL_CLASS


def _list_tools(kind: type) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(kind, lambda value: inspect.isfunction(value) or inspect.ismethod(value))
    return {name: function for name, function in found if not name.startswith("_") and name not in RESERVED}


def _describe(shape: str, functions: Mapping[str, Callable[..., Any]], kind: type | None, where: str) -> EnvironmentKind:
    tools = {name: build_schema(name, function, where) for name, function in functions.items()}
    methods = [*functions.values(), *(getattr(kind, name, None) for name in ("reset", "init", "step", "get_reward"))]
    is_async = any(inspect.iscoroutinefunction(method) for method in methods)
    has_reward = shape in (GYMNASIUM, SKYRL, OPENENV) or hasattr(kind, "get_reward")
    sessions = getattr(kind, "max_sessions", None)
    if sessions is not None and not (isinstance(sessions, int) and sessions > 0):
        raise UserError(f"{where}: max_sessions is {sessions!r}; it must be a whole number from 1, or left out")
    return EnvironmentKind(shape, tools if shape in (FUNCTIONS, TRL_CLASS) else None, has_reward, is_async, sessions)


class _Maker:
    """Makes the object of one episode: with the args of the recipe, and with the row where `__init__` has SkyRL's `extras`."""

    def __init__(self, made: Callable[..., Any], args: dict[str, Any], where: str) -> None:
        self._made, self._args = made, args
        try:
            parameters = list(inspect.signature(made).parameters.values())
        except (TypeError, ValueError):
            parameters = []  # a class without a signature of its own
        names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self._takes_row = "extras" in names
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if parameters and not takes_all and (unknown := sorted(args.keys() - names)):
            raise UserError(f"{where} takes no {', '.join(map(repr, unknown))} in args (it takes: {', '.join(sorted(names)) or 'none'})")
        required = {p.name for p in parameters if p.name in names and p.default is p.empty}
        if missing := sorted(required - args.keys() - {"extras"}):
            raise UserError(f"{where} needs {', '.join(map(repr, missing))} in environment.args")

    def __call__(self, row: Mapping[str, Any]) -> Any:
        if self._takes_row:
            return self._made(**{**self._args, "extras": {**row, **self._args.get("extras", {})}})
        return self._made(**self._args)


def choose_environment(environments: Mapping[str, LoadedEnvironment], row: Mapping[str, Any]) -> LoadedEnvironment:
    """The environment of a row. Raises UserError where several are there and the row's column `environment` names none of them."""
    if ONLY in environments:
        return environments[ONLY]
    name = row.get("environment")
    if not isinstance(name, str) or name not in environments:
        raise UserError(
            f"environment: the column `environment` of a row chooses one of {', '.join(environments)}; here it is {name!r} "
            f"(columns: {', '.join(map(str, row))})"
        )
    return environments[name]
