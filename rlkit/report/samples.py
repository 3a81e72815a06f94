"""Reads samples.jsonl by step, without reading what lies before: samples.index.jsonl beside it says where each step is.

A line of the index is {"step", "attempt", "offset", "bytes", "rows"} for each append. Where it is missing, or ends early, the rest of
samples.jsonl is looked through, a piece for each answer. Which attempt counts: report/folder.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.report.bounded_read import ReadBudget
from rlkit.report.folder import SAMPLES, SAMPLES_INDEX

KEY = re.compile(rb'\{"step": (\d{1,18}), "attempt": (\d{1,18})[,}]')
PAGE_BYTES, PAGE_ROWS = 1 << 20, 256  # of samples in one answer
SHOWN_BYTES = 200  # of a line that cannot be read


@dataclass(frozen=True)
class SampleBlock:
    """Samples of one step that lie together."""

    step: int
    attempt: int
    offset: int
    bytes: int
    rows: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


class SampleIndex:
    """Where the samples of each step are. `advance` reads on; `covered`: the bytes of samples.jsonl that are known, of `size`."""

    def __init__(self, folder: Path) -> None:
        self._samples, self._index = folder / SAMPLES, folder / SAMPLES_INDEX
        self._forget()

    def _forget(self) -> None:
        self.steps: dict[int, list[SampleBlock]] = {}
        self.covered, self.size = 0, 0
        self._index_read, self._attempt = 0, 0

    def advance(self, budget: ReadBudget) -> bool:
        """Reads what is new, as far as the budget goes; whether all is known."""
        try:
            self.size = self._samples.stat().st_size
        except OSError:
            self._forget()
            return True
        if self.size < self.covered:  # another file
            size = self.size
            self._forget()
            self.size = size
        ahead = self._read_index(budget)
        while self.covered < self.size:
            lines, end = budget.read_lines(self._samples, self.covered, min(PAGE_BYTES, ahead - self.covered) if ahead else PAGE_BYTES)
            if end == self.covered:
                break
            self._scan(lines)
            self.covered = end
            if self.covered == ahead:
                return self.advance(budget)
        return self.covered >= self.size

    def count_rows(self) -> dict[int, int]:
        """By step, how many samples it has."""
        return {step: sum(block.rows for block in blocks) for step, blocks in sorted(self.steps.items())}

    def read_page(self, step: int, cursor: int, budget: ReadBudget) -> tuple[list[dict[str, Any]], int | None]:
        """Samples of a step from the byte `cursor` on (0: its first), and where the next ones begin; None where these were the last."""
        for block in self.steps.get(step, []):
            start = max(cursor, block.offset)
            if start >= block.end:
                continue
            lines, end = budget.read_lines(self._samples, start, min(PAGE_BYTES, block.end - start))
            if len(lines) > PAGE_ROWS:
                lines = lines[:PAGE_ROWS]
                end = start + sum(len(line) + 1 for line in lines)
            last = end >= self.steps[step][-1].end or end == start
            return [parse_sample(line) for line in lines if line], None if last else end
        return [], None

    def _read_index(self, budget: ReadBudget) -> int | None:
        """Takes the lines that go on where `covered` ends. Returns where the next line begins, if there is a gap before it."""
        while True:
            try:
                lines, end = budget.read_lines(self._index, self._index_read, PAGE_BYTES)
            except OSError:
                return None
            if not lines:
                return None
            for line in lines:
                block = parse_block(line)
                if block and block.offset > self.covered and block.end <= self.size:
                    return block.offset
                if block and block.offset == self.covered and block.end <= self.size:
                    self._add(block)
                    self.covered = block.end
                self._index_read += len(line) + 1
            self._index_read = end

    def _scan(self, lines: list[bytes]) -> None:
        offset = self.covered
        for line in lines:
            if found := KEY.match(line):
                self._add(SampleBlock(int(found[1]), int(found[2]), offset, len(line) + 1, 1))
            offset += len(line) + 1

    def _add(self, block: SampleBlock) -> None:
        if block.attempt > self._attempt:
            self._attempt = block.attempt
            self.steps = {step: blocks for step, blocks in self.steps.items() if step < block.step}
        blocks = self.steps.setdefault(block.step, [])
        if blocks and blocks[-1].end == block.offset:
            blocks[-1] = replace(blocks[-1], bytes=blocks[-1].bytes + block.bytes, rows=blocks[-1].rows + block.rows)
        else:
            blocks.append(block)


def read_step_samples(folder: Path, step: int) -> list[dict[str, Any]]:
    """All samples of a step, in the order of the file. Raises UserError at a line that is not JSON."""
    index, rows, cursor = SampleIndex(folder), list[dict[str, Any]](), 0
    while not index.advance(ReadBudget()):
        pass
    while True:
        page, following = index.read_page(step, cursor, ReadBudget())
        if damaged := next((row["damaged"] for row in page if "damaged" in row), None):
            raise UserError(f"{folder / SAMPLES} has a line in step {step} that is not JSON: {damaged[:60]!r}; fix or remove that line")
        rows += page
        if following is None:
            return rows
        cursor = following


def parse_block(line: bytes) -> SampleBlock | None:
    """A line of the index; None where it is none."""
    try:
        row = json.loads(line)
        numbers = [row[name] for name in ("step", "attempt", "offset", "bytes", "rows")]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return SampleBlock(*numbers) if all(type(number) is int and number >= 0 for number in numbers) else None


def parse_sample(line: bytes) -> dict[str, Any]:
    """A row of samples.jsonl; of a line that is none, its beginning under `damaged`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else {"damaged": line[:SHOWN_BYTES].decode("utf-8", "replace")}
