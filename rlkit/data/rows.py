"""A table of rows that knows how to name each of them in an error."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from rlkit.errors import UserError

Row = dict[str, Any]
MAX_DEPTH = 100  # objects and lists inside one another; Python cannot print, pickle or compare what lies much deeper


class BadRow(UserError):
    """One row that cannot be used, named by file and row; `data.on_bad_row` decides whether it stops the run."""


class RowFault(Exception):
    """What is wrong with a row; the caller adds file and row number."""


class Rows(Sequence[Row]):
    """Rows by index, read on access. `name` is how errors call the table: `data.train gsm8k/train.jsonl`."""

    name: str
    of_one_form = False  # whether what makes one row usable holds for all, since one function made them

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold the rows; empty where there are none."""
        return ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_row(self, index: int) -> Row:
        """Row `index`, 0 <= index < len. Raises BadRow where it cannot be read."""

    def describe_row(self, index: int) -> str:
        """The row's name for a reader, counted from 1."""
        return f"{self.name} row {index + 1}"

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
        """All rows in order, faster than one by one where the format allows; at least the named top-level columns of each."""
        for index in range(len(self)):
            try:
                yield self.read_row(index)
            except BadRow as bad:
                yield bad

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.read_row(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: index {index} of {len(self)} rows")
        return self.read_row(index % len(self))


def truncate(text: str, width: int = 160, *, end: bool = False) -> str:
    """`text` for an error: its first `width` characters, or its last."""
    if len(text) <= width:
        return text
    return "... " + text[-width:] if end else text[:width] + " ..."


def show(value: object, width: int = 160) -> str:
    """A value for an error, cut to `width` characters."""
    try:
        return truncate(repr(value), width)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep to show"


def check_values(row: Row) -> None:
    """Raises RowFault for text that no encoding can write, and for objects or lists nested too deep."""
    for column, value in row.items():
        level, depth = [column, value], 0
        while level:
            if depth > MAX_DEPTH:
                raise RowFault(f'has in column "{column}" objects or lists nested more than {MAX_DEPTH} deep')
            texts = [part for part in level if isinstance(part, str) and not part.isascii()]
            for text in texts:
                check_text(column, text)
            lists = [part for part in level if isinstance(part, list)]
            objects = [part for part in level if isinstance(part, dict)]
            level = [part for parts in lists for part in parts]
            level += [part for parts in objects for pair in parts.items() for part in pair]
            depth += 1


def check_text(column: str, text: str) -> None:
    """Raises RowFault for a half of a surrogate pair, which is no character: it is in no encoding, so no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        sign = f"U+{ord(text[error.start]):04X}"
        raise RowFault(
            f"has in column {column!r} half a surrogate pair ({sign} at character {error.start + 1}), which is no text"
        ) from None


class ListRows(Rows):
    """Rows that are in memory already."""

    def __init__(self, name: str, rows: Sequence[Row], *, of_one_form: bool = False) -> None:
        self.name, self.of_one_form = name, of_one_form
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read_row(self, index: int) -> Row:
        return dict(self._rows[index])


class JoinedRows(Rows):
    """Several tables, one after the other."""

    def __init__(self, name: str, tables: Sequence[Rows]) -> None:
        self.name = name
        self._tables = tables
        self._ends = list(accumulate(len(table) for table in tables))

    @property
    def files(self) -> Sequence[Path]:
        return [file for table in self._tables for file in table.files]

    def __len__(self) -> int:
        return self._ends[-1]

    def read_row(self, index: int) -> Row:
        table, inside = self._find(index)
        return table.read_row(inside)

    def describe_row(self, index: int) -> str:
        table, inside = self._find(index)
        return table.describe_row(inside)

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
        for table in self._tables:
            yield from table.scan(columns)

    def _find(self, index: int) -> tuple[Rows, int]:
        which = bisect_right(self._ends, index)
        return self._tables[which], index - (self._ends[which - 1] if which else 0)
