"""The algorithms as they are shipped: the defaults of recipes/algorithm/, with some keys changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlkit.algorithms import ALGORITHMS, OFFLINE

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "algorithm"
NAMES = sorted(ALGORITHMS)


def algorithm(name: str, **changes: Any) -> Any:
    """Raises pydantic's ValidationError where the changes are refused."""
    return {**ALGORITHMS, **OFFLINE}[name].model_validate({**read_defaults(name), **changes})


def read_defaults(name: str) -> dict[str, Any]:
    """The keys of a file and of those that it includes; of an offline one its section `algorithm`."""
    text = (FOLDER / f"{name}.yaml").read_text()
    own = yaml.safe_load(text)
    keys: dict[str, Any] = {}
    for part in own.pop("defaults", []):
        keys |= read_defaults(part)
    return keys | dict(own.get("algorithm", {}) if "@package _global_" in text else own)
