"""The part of a run's metrics that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlkit.report.names import MACHINE


def select_repeatable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row of metrics.jsonl that another run with the same seed, or a resumed run, must repeat exactly."""
    return {name: value for name, value in row.items() if name != "attempt" and not name.startswith(MACHINE)}
