"""Rows for offline algorithms, with tokens: pairs, rated completions, demonstrations; as a Stream and as held-out rows.

A completion's tokens are those that the chat template writes after the opened prompt, with the end of the turn; after raw text those of the
text and the tokenizer's end. Nothing is cut out of a completion: a row with one above max_completion_tokens is left out and counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from rlkit.data.completions import CompletionRow, DemonstrationReader, PairReader, RatedReader
from rlkit.data.renderer import Renderer
from rlkit.data.stream import RowSet, SkipReason, TokenizedRow

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt."""

    row: int
    draw: int  # earlier passes over the row
    prompt: Tokens
    chosen: Tokens
    rejected: Tokens
    cut: bool = False  # the prompt's first tokens are left out, for it was too long


@dataclass(frozen=True)
class RatedCompletion:
    """A completion with a label."""

    row: int
    draw: int
    prompt: Tokens
    completion: Tokens
    desirable: bool
    cut: bool = False


@dataclass(frozen=True)
class Demonstration:
    """A completion to learn from."""

    row: int
    draw: int
    prompt: Tokens
    completion: Tokens
    cut: bool = False


T = TypeVar("T", bound=TokenizedRow)
Reader = PairReader | RatedReader | DemonstrationReader


class CompletionSet(RowSet[T]):
    """Rows whose completions are known; the limits and faults as RowSet has them."""

    def __init__(
        self,
        readers: Reader | Sequence[Reader],
        renderer: Renderer,
        *,
        max_prompt_tokens: int,
        max_completion_tokens: int,
        on_long: Literal["drop", "cut"] = "drop",
        on_bad_row: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(readers, renderer, max_prompt_tokens=max_prompt_tokens, on_long=on_long, on_bad_row=on_bad_row)
        self.max_completion_tokens = max_completion_tokens
        self.limits = f"a prompt longer than {max_prompt_tokens} or a completion longer than {max_completion_tokens} tokens"

    @abstractmethod
    def _build_item(self, row: int, draw: int, prompt: Tokens, completions: Sequence[Tokens], desirable: bool, cut: bool) -> T: ...

    def _build_row(self, read: CompletionRow, row: int, draw: int) -> T | SkipReason:
        kept = self._encode_prompt(read)
        if kept is None:
            return SkipReason.TOO_LONG
        encode = partial(self._renderer.encode_completion, read.prompt, tools=read.tools, limit=self.max_completion_tokens)
        completions = [tuple(encode(reply)) for reply in read.completions]
        if max(map(len, completions)) > self.max_completion_tokens:
            return SkipReason.TOO_LONG
        return self._build_item(row, draw, kept[0], completions, read.desirable, kept[1])


class PairSet(CompletionSet[Pair]):
    """Pairs, read by a PairReader."""

    def _build_item(self, row: int, draw: int, prompt: Tokens, completions: Sequence[Tokens], desirable: bool, cut: bool) -> Pair:
        return Pair(row, draw, prompt, completions[0], completions[1], cut)


class RatedSet(CompletionSet[RatedCompletion]):
    """Rated completions, read by a RatedReader."""

    def _build_item(
        self, row: int, draw: int, prompt: Tokens, completions: Sequence[Tokens], desirable: bool, cut: bool
    ) -> RatedCompletion:
        return RatedCompletion(row, draw, prompt, completions[0], desirable, cut)


class DemonstrationSet(CompletionSet[Demonstration]):
    """Demonstrations, read by a DemonstrationReader."""

    def _build_item(self, row: int, draw: int, prompt: Tokens, completions: Sequence[Tokens], desirable: bool, cut: bool) -> Demonstration:
        return Demonstration(row, draw, prompt, completions[0], cut)
