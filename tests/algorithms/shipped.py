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
    kept = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return {**ALGORITHMS, **OFFLINE}[name].model_validate({**kept.get("algorithm", kept), **changes})
