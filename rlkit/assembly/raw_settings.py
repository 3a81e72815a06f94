"""Whether raw settings, engine.vllm.* and engine.deepspeed.*, have names that the libraries know; neither is loaded.

The names stand in raw_settings.json, made of the sources of the pinned versions by `python -m tests.raw_settings`. DeepSpeed ignores a key
that it does not know. Left out: values, and settings inside those that are not listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rlkit.config.recipe import Recipe
from rlkit.config.suggestions import suggest
from rlkit.errors import UserError

NAMES = Path(__file__).with_suffix(".json")


def check_raw_settings(recipe: Recipe) -> None:
    """Raises UserError for the names that no library of the pinned version knows. Another version that is installed is not checked."""
    for library, settings in (("vllm", recipe.engine.vllm), ("deepspeed", recipe.engine.deepspeed)):
        known = read_names()[library]
        if not settings or find_version(library) not in (None, known["version"]):
            continue
        lines = [
            f"engine.{library}.{key}: {known['title']} {known['version']} has no such setting{hint}"
            for key, hint in list_unknown_settings(settings, known["names"])
        ]
        if lines:
            raise UserError("\n".join(lines))


@cache
def read_names() -> Mapping[str, Any]:
    """By library: title, version, and names by section, "" for the outermost."""
    content: Mapping[str, Any] = json.loads(NAMES.read_text())
    return content


def find_version(library: str) -> str | None:
    """Major and minor version of an installed library; None where it is not installed."""
    for package in (library, f"{library}-cpu"):
        try:
            return ".".join(metadata.version(package).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return None


def list_unknown_settings(settings: Mapping[str, Any], names: Mapping[str, list[str]], section: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, similar names) of each unknown setting, in the sections whose names are listed."""
    for name, value in settings.items():
        key = f"{section}.{name}".lstrip(".")
        if name not in names[section]:
            similar = suggest(str(name), names[section])
            yield key, similar if "did you mean" in similar else ""
        elif isinstance(value, Mapping) and key in names:
            yield from list_unknown_settings(value, names, key)
