"""What the page shows of runs, out of their folders, and no more of a file than an answer may read."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rlkit.report.bounded_read import ReadBudget
from rlkit.report.folder import METRICS, SUMMARY
from rlkit.report.names import BEST, HELD_OUT, HELD_OUT_LOSS, LOSS, REWARD, find_train_accuracy
from rlkit.report.page.curves import Curves
from rlkit.report.page.health import find_health_notes
from rlkit.report.run_result import RECIPE
from rlkit.report.samples import SampleIndex
from rlkit.report.status import STATUS, read_run_status

DEEPEST = 4  # folders below the one that is named: runs/NAME/DATE/seed=0
TAIL_BYTES = 16_384  # of metrics.jsonl that the list looks at
FILE_BYTES = 100_000  # of a recipe.yaml or summary.json that the page reads
UNKNOWN = "unknown"


class RunView:
    """One run, and what is known of it by now."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.id = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
        self.curves, self.samples = Curves(folder), SampleIndex(folder)
        self._cache: dict[str, tuple[tuple[int, int], Any]] = {}

    def summarize(self, budget: ReadBudget) -> dict[str, Any]:
        """A row of the list."""
        recipe = self.read_recipe(budget)
        state: dict[str, Any] = {"state": UNKNOWN, "step": self._read_tail(budget).get("step", 0), "steps": recipe.get("steps")}
        try:
            if status := read_run_status(self.folder):
                state = asdict(status)
        except (TypeError, ValueError, OverflowError, RecursionError):  # a status.json that somebody else wrote
            pass
        shown = ("state", "why", "step", "steps", "phase", "attempt", "started", "updated", "host")
        return {
            "id": self.id,
            "name": self.name,
            "folder": str(self.folder),
            **{key: state.get(key) for key in shown},
            "recipe": recipe.get("recipe"),
            "model": get_nested(recipe, "model", "path"),
            "algorithm": get_nested(recipe, "algorithm", "name"),
            **self._read_tail(budget),
        }

    def describe(self, rows: int, revision: int, budget: ReadBudget) -> dict[str, Any]:
        """The run with its curves from row `rows` on, or all where `revision` is not that of the curves any more."""
        row = self.summarize(budget)
        before = self.curves.read_bytes
        complete = self.curves.advance(budget)
        start = rows if revision == self.curves.revision and rows <= len(self.curves.steps) else 0
        fixed = {} if start else {"config": self.read_recipe(budget), "summary": self._read_document(SUMMARY, budget)}
        return {
            "run": row,
            **fixed,
            "revision": self.curves.revision,
            "start": start,
            "steps": self.curves.steps[start:],
            "columns": self.curves.slice(start),
            "more": not complete and self.curves.read_bytes > before,
            "read": [self.curves.read_bytes, self.curves.size],
            "health": find_health_notes(self.curves) if complete else [],
        }

    def list_steps(self, budget: ReadBudget) -> dict[str, Any]:
        """The steps that have samples, and how far samples.jsonl was looked through."""
        before = self.samples.covered
        complete = self.samples.advance(budget)
        counts = self.samples.count_rows()
        more = not complete and self.samples.covered > before
        return {"steps": list(counts), "rows": list(counts.values()), "read": [self.samples.covered, self.samples.size], "more": more}

    def read_samples(self, step: int, cursor: int, budget: ReadBudget) -> dict[str, Any]:
        """Samples of a step from byte `cursor` on."""
        if step not in self.samples.steps:
            self.samples.advance(budget)
        try:
            rows, following = self.samples.read_page(step, cursor, budget)
        except OSError:
            rows, following = [], None
        return {"step": step, "samples": rows, "next": following}

    def read_recipe(self, budget: ReadBudget) -> Mapping[str, Any]:
        """The recipe.yaml; empty where there is none that can be read."""
        return self._read_document(RECIPE, budget)

    def _read_document(self, name: str, budget: ReadBudget) -> Mapping[str, Any]:
        def parse(text: bytes) -> Mapping[str, Any]:
            found = json.loads(text) if name.endswith(".json") else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            return found if isinstance(found, dict) else {}

        found: Mapping[str, Any] = self._read_once(name, budget, lambda path, size: parse(budget.read(path, 0, FILE_BYTES)))
        return found

    def _read_tail(self, budget: ReadBudget) -> dict[str, Any]:
        """Of the last rows of metrics.jsonl: the last value of what the list shows."""

        def parse(path: Path, size: int) -> dict[str, Any]:
            start = max(0, size - TAIL_BYTES)
            lines = budget.read(path, start, TAIL_BYTES).split(b"\n")[1 if start else 0 : -1]
            found: dict[str, Any] = {}
            for line in lines:
                row = json.loads(line)
                values = {name: row[name] for name in (REWARD, LOSS, HELD_OUT, HELD_OUT_LOSS, BEST, "step") if row.get(name) is not None}
                accuracy = find_train_accuracy(row)
                found |= values | ({"accuracy": accuracy} if accuracy is not None else {})
            return found

        return dict(self._read_once(METRICS, budget, parse))

    def _read_once(self, name: str, budget: ReadBudget, parse: Callable[[Path, int], Any]) -> Any:
        """What `parse` makes of a file, which is read again where it has changed; empty where it cannot be read.

        Where the budget may not reach, the next answer reads it.
        """
        path = self.folder / name
        try:
            found = path.stat()
            mark = (found.st_mtime_ns, found.st_size)
            if self._cache.get(name, (None,))[0] != mark:
                if not budget.has(FILE_BYTES):
                    return self._cache.get(name, (mark, {}))[1]
                self._cache[name] = (mark, parse(path, found.st_size))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
            return {}
        return self._cache[name][1]


class RunBoard:
    """The runs in some folders; new ones are found at each look."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.expanduser().absolute() for root in roots]
        self._views: dict[Path, RunView] = {}

    def refresh(self) -> list[RunView]:
        """All runs, the newest first."""
        found: dict[Path, str] = {}
        for root in self._roots:
            for folder in walk_runs(root):
                found.setdefault(folder, str(folder.relative_to(root)) if folder != root else "/".join(folder.parts[-2:]))
        self._views = {folder: self._views.get(folder) or RunView(folder, name) for folder, name in found.items()}
        return sorted(self._views.values(), key=lambda view: -get_age_mark(view.folder))

    def find(self, name: str) -> RunView | None:
        """By its id."""
        known = {view.id: view for view in self._views.values()} or {view.id: view for view in self.refresh()}
        return known.get(name) or {view.id: view for view in self.refresh()}.get(name)


def walk_runs(folder: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """The folders of runs in a folder, itself too; nothing inside a run."""
    if any((folder / name).is_file() for name in (RECIPE, STATUS, METRICS)):
        yield folder
    elif depth:
        try:
            inside = sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return
        for found in inside:
            yield from walk_runs(found, depth - 1)


def get_age_mark(folder: Path) -> float:
    """When the run wrote last, Unix seconds."""
    for name in (METRICS, STATUS, RECIPE):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def get_nested(recipe: Mapping[str, Any], section: str, key: str) -> Any:
    found = recipe.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def format_page_json(value: Any) -> str:
    """JSON in ASCII, which a script element may hold: no `<`, and no number that JSON does not have."""
    text = json.dumps(replace_odd_values(value), allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def replace_odd_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): replace_odd_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_odd_values(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
