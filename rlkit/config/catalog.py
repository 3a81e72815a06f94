"""The recipes that can be chosen, as their files describe them: comment, algorithm, data, model. Nothing is composed.

Left out: what a recipe changes of its groups beside the source of the data and the model's path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlkit.config.compose import list_options, list_places, refuse_bombs
from rlkit.config.suggestions import suggest
from rlkit.errors import UserError
from rlkit.runtime.paths import find_bundled_folder

OVERRIDE = "override /"
PLACES = {"data": "train", "model": "path"}  # the key of a group that may name something else than the group's file


@dataclass(frozen=True)
class RecipeEntry:
    """`data` and `model`: the file of the group, or the source and the path that the recipe sets itself."""

    name: str
    description: str
    algorithm: str
    data: str
    model: str


def find_recipes(word: str, folder: Path | None) -> list[RecipeEntry]:
    """The recipes that have a word in their name or in what is known of them, all for an empty one. Raises UserError where none has it."""
    if folder:
        refuse_bombs(folder)
    entries = [read_entry(name, folder) for name in list_options("recipe", folder)]
    found = [entry for entry in entries if word.lower() in " ".join(vars(entry).values()).lower()]
    if not found:
        raise UserError(f"no recipe has {word!r} in its name or its description{suggest(word, [entry.name for entry in entries])}")
    return found


def read_entry(name: str, folder: Path | None) -> RecipeEntry:
    """What the file of a recipe says, and the files of recipes that it is based on. Raises UserError where one cannot be read."""
    file, content = _read_recipe_file(name, folder)
    try:
        chosen = {**_read_defaults(), **dict(_walk_choices(content, folder))}
    except RecursionError:
        raise UserError(f"{file} is based on itself") from None
    return RecipeEntry(name, read_comment(file), *(str(chosen[group]) for group in ("algorithm", "data", "model")))


def read_comment(file: Path) -> str:
    """The comment at the top of a recipe, as one line; empty where there is none."""
    lines = []
    for line in file.read_text(errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(line for line in lines if not line.startswith("@package"))


def _read_recipe_file(name: str, folder: Path | None) -> tuple[Path, Mapping[str, Any]]:
    file = next((place / f"{name}.yaml" for place in list_places("recipe", folder) if (place / f"{name}.yaml").is_file()), None)
    if file is None:
        raise UserError(f"a recipe is based on {name!r}, and there is no such recipe")
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as a recipe: {' '.join(str(error).split())[:200]}") from error
    return file, content if isinstance(content, Mapping) else {}


def _walk_choices(content: Mapping[str, Any], folder: Path | None) -> Iterator[tuple[str, Any]]:
    """(group, what is chosen), the later one wins: of the recipes that this one is based on, of its defaults, of its own keys."""
    for entry in content.get("defaults") or ():
        if isinstance(entry, str) and entry != "_self_":
            yield from _walk_choices(_read_recipe_file(entry, folder)[1], folder)
        elif isinstance(entry, Mapping):
            yield from ((str(key).removeprefix(OVERRIDE), value) for key, value in entry.items())
    for group, key in PLACES.items():
        own = content.get(group)
        if isinstance(own, Mapping) and isinstance(own.get(key), str | Mapping):
            yield group, own[key] if isinstance(own[key], str) else ", ".join(map(str, own[key]))


@cache
def _read_defaults() -> dict[str, str]:
    """The choice of each group in recipes/config.yaml."""
    content = yaml.safe_load((find_bundled_folder("recipes") / "config.yaml").read_text())
    return {group: name for entry in content["defaults"] if isinstance(entry, dict) for group, name in entry.items()}
