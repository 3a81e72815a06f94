"""JSON files read in place: an index of where each row starts and ends, and only the requested row is read.

Not through Arrow: that turns strings that look like dates into dates, gives every row the keys of all others (a chat template then sees
`tool_calls: None`), cannot skip a broken line, and keeps a second copy on disk that may be stale.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rlkit.data.rows import BadRow, Row, Rows, truncate
from rlkit.errors import UserError

CHUNK_BYTES = 1 << 24  # what is in memory at once while lines are counted
BOM = b"\xef\xbb\xbf"
STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
HEAD_BYTES = 8  # of a file, by which an encoding is recognised
NEWLINE = 10
SHORT_LINE = 8  # bytes; lines up to here are looked at one by one: a blank one is no row


class JsonRows(Rows):
    """One row a line (JSONL), or one JSON list of rows; the first character decides, not the name of the file."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        with path.open("rb") as file:
            refuse_utf16(name, file.read(HEAD_BYTES))
            file.seek(0)
            self._stamp = _read_stamp(file)
            self._is_list = _read_first_character(file) == b"["
            spans = _find_list_spans(name, file) if self._is_list else _find_line_spans(file)
        self._starts, self._ends, self._lines = spans
        if len(self._starts) == 0:
            raise UserError(f"{name} is empty: {path} holds no row; expected one JSON object a line, or one list of objects")
        if len(self._starts) > 1 and not self._is_list:
            self._refuse_one_object_over_many_lines()

    @property
    def files(self) -> Sequence[Path]:
        return [self._path]

    def __len__(self) -> int:
        return len(self._starts)

    def read_row(self, index: int) -> Row:
        with self._path.open("rb") as file:
            if _read_stamp(file) != self._stamp:
                raise UserError(f"{self.name} changed while it was being read ({self._path}); leave it alone, or start a new run")
            file.seek(int(self._starts[index]))
            return self._parse(index, file.read(int(self._ends[index] - self._starts[index])))

    def describe_row(self, index: int) -> str:
        row, line = index + 1, int(self._lines[index])
        return f"{self.name} row {row}" + ("" if self._is_list or line == row else f" (line {line})")

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
        with self._path.open("rb") as file:
            for index, (start, end) in enumerate(zip(self._starts.tolist(), self._ends.tolist(), strict=True)):
                file.seek(start)
                try:
                    yield self._parse(index, file.read(end - start))
                except BadRow as bad:
                    yield bad

    def _parse(self, index: int, data: bytes) -> Row:
        place = f"{self.name} row {index + 1}" if self._is_list else f"{self.name} line {int(self._lines[index])}"
        try:
            row = json.loads(data)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError where it is not UTF-8, too many digits
            why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise BadRow(f"{place} is not valid JSON ({why}): {_preview(data)}\nfix the line, or set data.on_bad_row=skip") from None
        if not isinstance(row, dict):
            raise BadRow(f"{place} is not an object of columns: {_preview(data)}\nfix the line, or set data.on_bad_row=skip")
        return row

    def _refuse_one_object_over_many_lines(self) -> None:
        with self._path.open("rb") as file:
            first = file.read(int(self._ends[0])).removeprefix(BOM).strip()
        if first == b"{":
            raise UserError(f"{self.name} is one JSON object over many lines; expected one object a line, or a list [{{...}}, {{...}}]")


Spans = tuple[np.ndarray, np.ndarray, np.ndarray]  # [N] first byte, [N] byte after the last, [N] line counted from 1


def _find_line_spans(file: BinaryIO) -> Spans:
    file.seek(0)
    size, position, found = os.fstat(file.fileno()).st_size, 0, []
    while chunk := file.read(CHUNK_BYTES):
        found.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == NEWLINE) + position)
        position += len(chunk)
    ends = np.append(np.concatenate(found) if found else np.empty(0, dtype=np.int64), size).astype(np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)
    file.seek(0)
    if file.read(len(BOM)) == BOM:
        starts[0] = len(BOM)
    kept = ends > starts
    for index in np.flatnonzero(kept & (ends - starts <= SHORT_LINE)).tolist():
        file.seek(int(starts[index]))
        kept[index] = bool(file.read(int(ends[index] - starts[index])).strip())
    return starts[kept], ends[kept], np.flatnonzero(kept) + 1


def _find_list_spans(name: str, file: BinaryIO) -> Spans:
    """Spans of a list's elements. Latin-1 keeps one character a byte, and JSON's own signs are ASCII, so positions are offsets."""
    file.seek(0)
    text = file.read().decode("latin-1")
    scan = json.JSONDecoder(parse_int=str).raw_decode  # a number of 5,000 digits is a fault of its row, found when that is read
    skip = json.decoder.WHITESPACE.match  # type: ignore[attr-defined]
    starts: list[int] = []
    ends: list[int] = []
    position = text.index("[") + 1
    try:
        while text[position := skip(text, position).end()] != "]":
            if starts:
                if text[position] != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
                position = skip(text, position + 1).end()
            starts.append(position)
            try:
                position = scan(text, position)[1]
            except RecursionError:  # a bad row, once it is read
                position = _find_closing_bracket(text, position)
            ends.append(position)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} line {error.lineno} is not valid JSON ({error.msg}, column {error.colno}): row {len(starts)}") from None
    except IndexError:
        raise UserError(f"{name} is cut off after row {len(ends)}: the list has no closing ]") from None
    after = skip(text, position + 1).end()
    if after < len(text):
        line, more = text.count("\n", 0, after) + 1, _preview(text[after : after + CHUNK_BYTES].encode("latin-1"))
        raise UserError(
            f"{name} line {line} goes on after the closing ] of its list: {more}\nkeep one list in a file, or write one object a line"
        )
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64), np.arange(1, len(starts) + 1)


def _find_closing_bracket(text: str, position: int) -> int:
    """The position after an object or list of any depth. Raises IndexError where it does not end."""
    depth = 0
    for sign in STRING_OR_BRACKET.finditer(text, position):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(sign[0], 0)
        if depth == 0:
            return sign.end()
    raise IndexError(position)


def refuse_utf16(name: str, head: bytes) -> None:
    """Raises UserError where a file of text begins as UTF-16 or UTF-32 does: with a mark, or with NUL bytes among its first signs."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise UserError(f"{name} is not UTF-8 but UTF-16, UTF-32 or binary: it begins with {head!r}; save it as UTF-8")


def _read_first_character(file: BinaryIO) -> bytes:
    return file.read(CHUNK_BYTES).removeprefix(BOM).lstrip()[:1]


def _read_stamp(file: BinaryIO) -> tuple[int, int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _preview(data: bytes) -> str:
    return truncate(data.decode("utf-8", errors="replace").strip(), 80)
