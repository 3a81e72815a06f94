"""Rows with tokens: the training stream, resumable at any row, and the held-out rows in the order of their file.

A row longer than max_prompt_tokens is skipped when it is read, not at the start. A position counts the rows that were read. So a million
rows cost nothing before the first step, and every rank and every resumed run skips the same rows.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Generic, Literal, Protocol, TypeVar

from rlkit.data.columns import PromptRow, RowReader
from rlkit.data.completions import CompletionRow
from rlkit.data.cursor import Cursor
from rlkit.data.renderer import PromptRefused, Renderer, TextTooLong
from rlkit.data.rows import BadRow
from rlkit.errors import UserError

LONGEST_GAP = 10_000  # skipped rows in a row, after which the limit is wrong rather than the rows
SOME_ROWS = 500  # a sample, where reading all rows would take too long


class TokenizedRow(Protocol):
    """A row with tokens. (row, draw) is unique in a run."""

    @property
    def row(self) -> int: ...
    @property
    def draw(self) -> int: ...  # earlier passes over the row
    @property
    def cut(self) -> bool: ...  # the prompt's first tokens are left out, for it was too long


T = TypeVar("T", bound=TokenizedRow)


@dataclass(frozen=True)
class Prompt(PromptRow):
    """A prompt as the engine gets it."""

    draw: int
    tokens: tuple[int, ...]
    cut: bool


class SkipReason(StrEnum):
    """Why a row was skipped."""

    TOO_LONG = "too_long"
    BAD_ROW = "bad_row"


class RowSet(ABC, Generic[T]):
    """What rows become, by row, over one source or several, one after the other.

    on_long: "drop" leaves a row with a prompt above max_prompt_tokens out, "cut" keeps the prompt's last tokens. on_bad_row: "stop" raises
    BadRow, "skip" leaves the row out. What was left out or cut is counted where rows are taken.
    """

    def __init__(
        self,
        readers: RowReader[Any] | Sequence[RowReader[Any]],
        renderer: Renderer,
        *,
        max_prompt_tokens: int,
        on_long: Literal["drop", "cut"] = "drop",
        on_bad_row: Literal["stop", "skip"] = "stop",
    ) -> None:
        self._readers = [readers] if isinstance(readers, RowReader) else list(readers)
        self._ends = list(accumulate(len(reader) for reader in self._readers))
        self._renderer = renderer
        self.max_prompt_tokens = max_prompt_tokens
        self._cut, self._skip = on_long == "cut", on_bad_row == "skip"
        self.name = ", ".join(reader.rows.name for reader in self._readers)
        self.limits = f"longer than {max_prompt_tokens} tokens"
        self.first_bad: str | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    @abstractmethod
    def _build_row(self, read: Any, row: int, draw: int) -> T | SkipReason:
        """What a reader read, with tokens."""

    def describe_row(self, row: int) -> str:
        """The name of a row for a reader: its source, and its number there."""
        reader, inside = self._find(row)
        return reader.rows.describe_row(inside)

    def list_columns(self) -> set[str]:
        """The columns of all sources, as the first row of each has them."""
        return {name for reader in self._readers for name in reader.first}

    def get(self, row: int, draw: int = 0) -> T | SkipReason:
        """What a row becomes, or why it becomes nothing."""
        reader, inside = self._find(row)
        try:
            return self._build_row(reader.read(inside), row, draw)
        except TextTooLong:
            return SkipReason.TOO_LONG
        except (BadRow, PromptRefused) as fault:
            bad = fault if isinstance(fault, BadRow) else BadRow(f"{reader.rows.describe_row(inside)}: {fault}")
            if not self._skip:
                raise bad from fault.__cause__
            self.first_bad = self.first_bad or str(bad).splitlines()[0]
            return SkipReason.BAD_ROW

    def read_all(self, limit: int | None = None) -> tuple[list[T], Counts]:
        """The first `limit` in the order of the file (default: all), and what was left out on the way."""
        taken: list[T] = []
        counts = Counts()
        for row in range(len(self)):
            if limit is not None and len(taken) == limit:
                break
            found = self.get(row)
            counts = counts.add(found)
            if not isinstance(found, SkipReason):
                taken.append(found)
        if not taken and limit != 0:
            raise UserError(self.describe_empty(counts))
        return taken, counts

    def pick_sample(self, size: int = SOME_ROWS) -> range:
        """Up to `size` rows, spread evenly."""
        return range(0, len(self), -(-len(self) // size))

    def compute_digest(self) -> str:
        """A hash of the rows of `pick_sample` as they are in the files: other rows, another order or other columns give another hash.

        In a set of more than SOME_ROWS most rows are not in it: a bad row can be fixed and the run resumed. A value that JSON does not
        have (an image, a date) counts by its type.
        """
        digest = blake2b(digest_size=16)
        for row in self.pick_sample():
            reader, inside = self._find(row)
            try:
                text = json.dumps(reader.rows[inside], default=lambda value: type(value).__name__)
            except BadRow:
                text = "bad"
            digest.update(text.encode() + b"\n")
        return digest.hexdigest()

    def _find(self, row: int) -> tuple[RowReader[Any], int]:
        source = bisect_right(self._ends, row)
        return self._readers[source], row - (self._ends[source - 1] if source else 0)

    def count_sample(self, size: int = SOME_ROWS) -> Counts:
        """What becomes of some rows. Raises UserError where they are all rows, and none can be used."""
        counts = Counts()
        for row in self.pick_sample(size):
            counts = counts.add(self.get(row))
        if counts.looked_at == len(self) == counts.too_long + counts.bad_row:
            raise UserError(self.describe_empty(counts))
        return counts

    def describe_skips(self, counts: Counts) -> str | None:
        """One line for a person on what was left out or cut; None where nothing was."""
        long = f"{counts.too_long + counts.cut} {'cut' if self._cut and not counts.too_long else 'left out'}: {self.limits}"
        bad = f"{counts.bad_row} left out: cannot be used, the first: {self.first_bad}"
        parts = [text for text, seen in ((long, counts.too_long + counts.cut), (bad, counts.bad_row)) if seen]
        return f"{self.name}: of {counts.looked_at} rows looked at, {'; '.join(parts)}" if parts else None

    def describe_empty(self, counts: Counts) -> str:
        return f"no row can be used. {self.describe_skips(counts)}\nraise the limit, set data.on_long=cut, or fix the rows"

    def _encode_prompt(self, read: PromptRow | CompletionRow) -> tuple[tuple[int, ...], bool] | None:
        """The tokens, and whether some were cut; None where they are too many."""
        tokens = self._renderer.encode_prompt(read.prompt, read.tools, limit=self.max_prompt_tokens, cut=self._cut)
        too_long = len(tokens) > self.max_prompt_tokens
        if too_long and not self._cut:
            return None
        return tuple(tokens[-self.max_prompt_tokens :]), too_long


class PromptSet(RowSet[Prompt]):
    """Prompts, read by a PromptReader."""

    def _build_row(self, read: PromptRow, row: int, draw: int) -> Prompt | SkipReason:
        kept = self._encode_prompt(read)
        if kept is None:
            return SkipReason.TOO_LONG
        return Prompt(row, read.prompt, read.answer, read.columns, tools=read.tools, draw=draw, tokens=kept[0], cut=kept[1])


@dataclass(frozen=True)
class Counts:
    """What became of the rows looked at."""

    looked_at: int = 0
    too_long: int = 0
    bad_row: int = 0
    cut: int = 0

    def add(self, found: TokenizedRow | SkipReason) -> Counts:
        """The counts with one more row."""
        cut = not isinstance(found, SkipReason) and found.cut
        return Counts(
            self.looked_at + 1, self.too_long + (found is SkipReason.TOO_LONG), self.bad_row + (found is SkipReason.BAD_ROW), self.cut + cut
        )


class Stream(Generic[T]):
    """A set in the cursor's order. `counts.looked_at` is the position; every rank takes the same things and picks its own."""

    def __init__(self, rows: RowSet[T], cursor: Cursor) -> None:
        if cursor.count > len(rows):
            raise ValueError(f"a cursor over {cursor.count} rows for {len(rows)}")
        self.rows = rows
        self.counts = Counts()
        self._cursor = cursor
        self._digest = rows.compute_digest()

    def take(self, n: int) -> list[T]:
        """The next `n`. Raises UserError where a whole pass gives none."""
        taken: list[T] = []
        without = 0
        while len(taken) < n:
            row, draw = self._cursor.locate(self.counts.looked_at)
            found = self.rows.get(row, draw)
            self.counts = self.counts.add(found)
            if isinstance(found, SkipReason):
                without += 1
            else:
                taken.append(found)
                without = 0
            if without >= min(2 * self._cursor.count, LONGEST_GAP):  # two passes hold a whole one, wherever they begin
                raise UserError(self.rows.describe_empty(self.counts))
        return taken

    def get(self, row: int, draw: int) -> T:
        """What was taken before. Raises UserError where the row is no longer what it was."""
        found = self.rows.get(row, draw)
        if isinstance(found, SkipReason):
            raise UserError(
                f"{self.rows.describe_row(row)}: the checkpoint continues a sample of it, and now it cannot be used; put it back"
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream, for a checkpoint."""
        return {"rows": self._cursor.count, "seed": self._cursor.seed, "digest": self._digest, **vars(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` stood. Raises UserError where the seed, the number of rows or one of those in the digest is another."""
        for word, now in (("rows", self._cursor.count), ("seed", self._cursor.seed)):
            if state[word] != now:
                raise UserError(f"{self.rows.name}: the checkpoint was made with {word}={state[word]}, now it is {now}; start a new run")
        if state["digest"] != self._digest:
            raise UserError(
                f"{self.rows.name}: the checkpoint was made with as many rows, but others or in another order; "
                "put them back, or start a new run"
            )
        self.counts = Counts(**{word: state[word] for word in vars(Counts())})
