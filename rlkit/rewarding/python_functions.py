"""Rewards that `rlkit.train` got as Python objects and that no file holds: lambdas, closures, functions of a notebook.

The caller pickles them with cloudpickle and sends them through a pipe. The process of the run keeps the bytes and never loads them; only
reward workers do. A recipe names such a reward `python:NAME`, which no other process can run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlkit.errors import UserError

PREFIX = "python:"


@dataclass(frozen=True)
class Parameters:
    """names: of all parameters of a function; required: of those without a default."""

    names: frozenset[str]
    required: frozenset[str]


@dataclass(frozen=True)
class PythonFunction:
    """pickled: by cloudpickle."""

    pickled: bytes
    parameters: Parameters


_registered: dict[str, PythonFunction] = {}


def register_functions(functions: Mapping[str, PythonFunction]) -> None:
    """Makes functions known in this process, by their path."""
    _registered.update(functions)


def find_registered(path: str) -> PythonFunction | None:
    """The function of a path; None for a path of another kind. Raises UserError where it begins with PREFIX and this process has none."""
    if not path.startswith(PREFIX):
        return None
    if path not in _registered:
        raise UserError(
            f"reward {path!r} came from Python, through rlkit.train, and no file holds it: call rlkit.train again with the same rewards=, "
            f"or write the function into a file and name that, my_rewards.py:{path.removeprefix(PREFIX)}"
        )
    return _registered[path]
