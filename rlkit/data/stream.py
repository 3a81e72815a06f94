"""Prompts with tokens: the training stream, resumable at any prompt, and the held-out problems in the order of their file.

A row too long for max_prompt_tokens is found out when its turn comes, not at the start: a position counts rows looked at, so a million rows
cost nothing before the first step, and every rank and every resumed run leaves out the same ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Literal

from rlkit.data.columns import PromptReader, PromptRow
from rlkit.data.cursor import Cursor
from rlkit.data.renderer import Renderer
from rlkit.data.rows import BadRow
from rlkit.errors import UserError

LONGEST_GAP = 10_000  # rows in a row without a prompt, after which a limit is wrong rather than a row


@dataclass(frozen=True)
class Prompt(PromptRow):
    """A prompt as the engine gets it. (row, draw) is unique in a run."""

    draw: int  # earlier passes over the row
    tokens: tuple[int, ...]
    cut: bool  # the first tokens are left out, for it was too long


class LeftOut(StrEnum):
    """Why a row gave no prompt."""

    TOO_LONG = "too_long"
    BAD_ROW = "bad_row"


class PromptSet:
    """Prompts by row, over one source or several, one after the other.

    on_long: "drop" leaves a prompt above max_prompt_tokens out, "cut" keeps its last tokens. on_bad_row: "stop" raises BadRow, "skip"
    leaves the row out. What was left out or cut is counted where prompts are taken.
    """

    def __init__(
        self,
        readers: PromptReader | Sequence[PromptReader],
        renderer: Renderer,
        *,
        max_prompt_tokens: int,
        on_long: Literal["drop", "cut"] = "drop",
        on_bad_row: Literal["stop", "skip"] = "stop",
    ) -> None:
        self._readers = [readers] if isinstance(readers, PromptReader) else list(readers)
        self._ends = list(accumulate(len(reader) for reader in self._readers))
        self._renderer = renderer
        self.max_prompt_tokens = max_prompt_tokens
        self._cut, self._skip = on_long == "cut", on_bad_row == "skip"
        self.name = ", ".join(reader.rows.name for reader in self._readers)
        self.first_bad: str | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    def get(self, row: int, draw: int = 0) -> Prompt | LeftOut:
        """The prompt of a row, or why there is none."""
        source = bisect_right(self._ends, row)
        inside = row - (self._ends[source - 1] if source else 0)
        try:
            read = self._readers[source].read(inside)
        except BadRow as bad:
            if not self._skip:
                raise
            self.first_bad = self.first_bad or str(bad).splitlines()[0]
            return LeftOut.BAD_ROW
        tokens = self._renderer.encode_prompt(read.prompt)
        too_long = len(tokens) > self.max_prompt_tokens
        if too_long and not self._cut:
            return LeftOut.TOO_LONG
        kept = tokens[-self.max_prompt_tokens :]
        return Prompt(row, read.prompt, read.answer, read.columns, draw=draw, tokens=tuple(kept), cut=too_long)

    def all(self, limit: int | None = None) -> tuple[list[Prompt], Counts]:
        """The first `limit` prompts in the order of the file (default: all), and what was left out on the way."""
        prompts: list[Prompt] = []
        counts = Counts()
        for row in range(len(self)):
            if limit is not None and len(prompts) == limit:
                break
            found = self.get(row)
            counts = counts.after(found)
            if isinstance(found, Prompt):
                prompts.append(found)
        if not prompts and limit != 0:
            raise UserError(self.nothing_left(counts))
        return prompts, counts

    def told(self, counts: Counts) -> str | None:
        """One line for a person on what was left out or cut; None where nothing was."""
        long = f"{counts.too_long + counts.cut} {'cut' if self._cut else 'left out'}: longer than {self.max_prompt_tokens} tokens"
        bad = f"{counts.bad_row} left out: cannot be used, the first: {self.first_bad}"
        parts = [text for text, seen in ((long, counts.too_long + counts.cut), (bad, counts.bad_row)) if seen]
        return f"{self.name}: of {counts.looked_at} rows looked at, {'; '.join(parts)}" if parts else None

    def nothing_left(self, counts: Counts) -> str:
        return f"no row gives a prompt. {self.told(counts)}\nraise max_prompt_tokens, set data.on_long=cut, or mend the rows"


@dataclass(frozen=True)
class Counts:
    """What became of the rows looked at."""

    looked_at: int = 0
    too_long: int = 0
    bad_row: int = 0
    cut: int = 0

    def after(self, found: Prompt | LeftOut) -> Counts:
        """The counts with one more row."""
        cut = isinstance(found, Prompt) and found.cut
        return Counts(
            self.looked_at + 1, self.too_long + (found is LeftOut.TOO_LONG), self.bad_row + (found is LeftOut.BAD_ROW), self.cut + cut
        )


class PromptStream:
    """Prompts in the cursor's order. `counts.looked_at` is the position; every rank takes the same prompts and picks its own."""

    def __init__(self, prompts: PromptSet, cursor: Cursor) -> None:
        if cursor.count > len(prompts):
            raise ValueError(f"a cursor over {cursor.count} rows for {len(prompts)}")
        self.prompts = prompts
        self.counts = Counts()
        self._cursor = cursor

    def take(self, n: int) -> list[Prompt]:
        """The next `n` prompts; fewer only where the cursor's epochs end. Raises UserError where a whole pass gives none."""
        taken: list[Prompt] = []
        without = 0
        for row, draw in self._places():
            if len(taken) == n:
                break
            found = self.prompts.get(row, draw)
            self.counts = self.counts.after(found)
            if isinstance(found, Prompt):
                taken.append(found)
                without = 0
            else:
                without += 1
            if without >= min(2 * self._cursor.count, LONGEST_GAP):  # two passes hold a whole one, wherever they begin
                raise UserError(self.prompts.nothing_left(self.counts))
        return taken

    def state(self) -> dict[str, int]:
        """Where the stream stands, for a checkpoint."""
        return {"rows": self._cursor.count, "seed": self._cursor.seed, **vars(self.counts)}

    def load(self, state: dict[str, int]) -> None:
        """Goes on where `state` stood. Raises UserError where the rows or the seed are no longer the same."""
        for word, now in (("rows", self._cursor.count), ("seed", self._cursor.seed)):
            if state[word] != now:
                raise UserError(f"{self.prompts.name}: the checkpoint was made with {word}={state[word]}, now it is {now}; start a new run")
        self.counts = Counts(**{word: state[word] for word in vars(Counts())})

    def _places(self) -> Iterator[tuple[int, int]]:
        position = self.counts.looked_at
        while block := self._cursor.take(position, 1):
            yield from block
            position += 1
