"""From Python values to the words of a command line: {"optim": {"lr": 1e-4}} -> optim.lr=0.0001. The door reads them as any others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from rlkit.errors import UserError

NAME = re.compile(r"[A-Za-z_]\w*")


def name_recipe(recipe: object) -> str:
    """The word that chooses a recipe: recipe=NAME, or the file of a run's own."""
    if not isinstance(recipe, str | PurePath) or not str(recipe):
        raise UserError(f"recipe={recipe!r} is no name of a recipe and no path of a run's recipe.yaml")
    return str(recipe) if str(recipe).endswith((".yaml", ".yml")) else f"recipe={recipe}"


def build_words(overrides: Mapping[str, Any]) -> list[str]:
    """The words of nested mappings, with dots between the names. Raises UserError for what a recipe cannot hold."""
    return [f"{key}={value}" for key, value in _flatten(overrides, "")]


def _flatten(section: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    from rlkit.config.compose import list_groups

    for name, value in section.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str) or not all(NAME.fullmatch(part) for part in name.split(".")):
            raise UserError(f"{key!r} cannot be a key of a recipe: letters, digits and _, with dots between sections")
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        elif isinstance(value, str) and key in list_groups():
            yield key, value  # chooses a file: algorithm=grpo
        else:
            yield key, _format_value(value, key)


def _format_value(value: Any, key: str) -> str:
    from rlkit.config.compose import quote

    if hasattr(value, "tolist"):  # a number or an array of numpy or torch
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        return quote(str(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_format_value(part, key) for part in value)}]"
    if isinstance(value, Mapping):
        pairs = [(name, _format_value(part, key)) for name, part in value.items()]
        if all(isinstance(name, str) and NAME.fullmatch(name) for name, _ in pairs):
            return "{" + ",".join(f"{name}:{part}" for name, part in pairs) + "}"
    raise UserError(f"{key}: a recipe holds text, numbers, True, False, None, lists and mappings, not {type(value).__name__} {value!r:.80}")
