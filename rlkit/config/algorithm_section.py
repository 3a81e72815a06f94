"""The section `algorithm` of a recipe as the class that its name chooses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlkit.algorithms import ALGORITHMS, OFFLINE, Objective
from rlkit.config.suggestions import suggest
from rlkit.data.rows import show
from rlkit.runtime.plugins import import_file


def parse_algorithm(value: Any) -> Any:
    """The section `algorithm` as the class of its `name`, or as the class in the user's file of its `path`."""
    if not isinstance(value, Mapping):
        raise ValueError(
            f"algorithm={show(value)} is not valid: choose one by its name, algorithm=grpo, and set its keys: algorithm.clip_low=0.2"
        )
    name = value.get("name")
    if name == "custom":
        keys = dict(value)
        return load_custom_algorithm(str(keys.pop("path", None))).model_validate(keys)
    known: dict[str, type[BaseModel]] = {**ALGORITHMS, **OFFLINE}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"there is no algorithm {name!r}{suggest(str(name), [*known, 'custom'])}")
    return known[name].model_validate(dict(value))


def load_custom_algorithm(path: str) -> type[Objective]:
    """The class of a path FILE.py:Class, relative to the working directory. Raises ValueError where there is none."""
    file, colon, name = path.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ValueError(f"algorithm.path={path} names no class in a file; write my_algorithm.py:MyAlgorithm")
    location = Path(file).absolute()
    if not location.is_file():
        raise ValueError(f"algorithm.path={path}: there is no file {location}; a path is relative to the working directory")
    try:
        module = import_file(location)
    except Exception as error:  # a user's file may raise anything; its message is passed on
        raise ValueError(f"algorithm.path={path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Objective):
        return found
    known = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, Objective) and c.__module__ == module.__name__]
    what = "is not a subclass of rlkit.algorithms.Objective" if found is not None else "is not in that file"
    raise ValueError(f"algorithm.path={path}: {name} {what}{suggest(name, known, 'it has')}")
