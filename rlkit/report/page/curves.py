"""The valid rows of a metrics.jsonl as columns, read on from where the last answer ended."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

from rlkit.report.bounded_read import ReadBudget
from rlkit.report.folder import METRICS
from rlkit.report.names import CLOCK

MOST_COLUMNS = 1000
DIGITS = 7


class Curves:
    """`steps` and `columns` (one value a step, None where it has none). `revision` changes where rows that were read are replaced."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS
        self.revision = 0
        self.steps: list[int] = []
        self.columns: dict[str, list[float | None]] = {}
        self.read_bytes, self.size = 0, 0

    def advance(self, budget: ReadBudget) -> bool:
        """Reads what is new, as far as the budget goes; whether that was all."""
        try:
            self.size = self._path.stat().st_size
        except OSError:
            return True
        if self.size < self.read_bytes:  # another file
            self.read_bytes = 0
            self._cut(0)
        while self.read_bytes < self.size:
            lines, end = budget.read_lines(self._path, self.read_bytes)
            if end == self.read_bytes:
                break
            for line in lines:
                self._add(line)
            self.read_bytes = end
        return self.read_bytes >= self.size

    def slice(self, start: int) -> dict[str, list[float | None]]:
        """The columns from row `start` on."""
        return {name: [*column[start:], *[None] * (len(self.steps) - max(len(column), start))] for name, column in self.columns.items()}

    def get(self, name: str) -> list[float]:
        """All values of a metric."""
        return [value for value in self.columns.get(name, []) if value is not None]

    def _add(self, line: bytes) -> None:
        """Rows are appended in the order of attempts: a step that is not above the last one begins a new attempt."""
        try:
            row: dict[str, Any] = json.loads(line)
            step = row["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if type(step) is not int or step < 0:
            return
        if self.steps and step <= self.steps[-1]:
            self._cut(bisect_left(self.steps, step))
        for name, value in row.items():
            if type(value) not in (int, float) or name == "step" or (name not in self.columns and len(self.columns) >= MOST_COLUMNS):
                continue
            column = self.columns.setdefault(name, [])
            column.extend([None] * (len(self.steps) - len(column)))
            column.append(value if name == CLOCK or type(value) is int else float(f"{value:.{DIGITS}g}"))
        self.steps.append(step)

    def _cut(self, rows: int) -> None:
        self.revision += 1
        del self.steps[rows:]
        for column in self.columns.values():
            del column[rows:]
