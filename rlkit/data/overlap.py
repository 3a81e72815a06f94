"""Which held-out problems stand in the training rows: the same text but for spaces and case, or 13 words in a row.

N-grams of 13 words are those of Brown et al. (2020), "Language models are few-shot learners", appendix C. Words that many problems of one
set share are an instruction and no problem, so they do not count. Left out: translations and paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WORDS_IN_A_ROW = 13
MOST_SHARED, SHARED = 3, 0.01  # problems of a set that may share an n-gram before it is an instruction: so many, or this share
WORDS_AT_ONCE = 1_000_000
WORD = re.compile(r"\w+")
EMPTY = np.zeros(0, np.uint64)
FACTORS = np.random.default_rng(WORDS_IN_A_ROW).integers(1, 2**63, WORDS_IN_A_ROW, dtype=np.uint64) | np.uint64(1)  # of a hash, mod 2^64


@dataclass(frozen=True)
class Overlap:
    """problems: of the set; shared: those that stand in training rows; rows: the numbers of these rows."""

    problems: int
    shared: int
    rows: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.shared / max(self.problems, 1)


def find_overlaps(sets: Mapping[str, Sequence[str]], rows: Iterable[str]) -> dict[str, Overlap]:
    """The overlap of each set of texts with the training rows, which are read once."""
    index = _Index(sets)
    shared: dict[str, set[int]] = {name: set() for name in sets}
    found: dict[str, set[int]] = {name: set() for name in sets}
    for row, name, problem in index.match(rows):
        shared[name].add(problem)
        found[name].add(row)
    return {name: Overlap(len(texts), len(shared[name]), tuple(sorted(found[name]))) for name, texts in sets.items()}


class _Index:
    """The texts and n-grams of all sets."""

    def __init__(self, sets: Mapping[str, Sequence[str]]) -> None:
        self._owners: list[tuple[str, int]] = []  # set and problem
        self._numbers: dict[str, int] = {}  # of each word in the sets, from 1
        self._texts: dict[str, list[int]] = {}  # without spaces -> owners
        parts = [self._add_set(name, texts) for name, texts in sets.items()]
        every, of = np.concatenate([EMPTY, *(part[0] for part in parts)]), np.concatenate([EMPTY.astype(np.int64), *(p[1] for p in parts)])
        order = np.argsort(every, kind="stable")
        self._grams, self._of = every[order], of[order]

    def _add_set(self, name: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """[M] n-grams of a set, each problem's once, and [M] their owners; without those that touch an instruction."""
        hashes, first = [], len(self._owners)
        for problem, text in enumerate(texts):
            self._owners.append((name, problem))
            if plain := squeeze_text(text):
                self._texts.setdefault(plain, []).append(first + problem)
            numbers = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in WORD.findall(text.casefold())]
            hashes.append(hash_windows(np.array(numbers, np.uint64)))
        every, counts = np.unique(np.concatenate([EMPTY, *map(np.unique, hashes)]), return_counts=True)
        instruction = every[counts > max(MOST_SHARED, SHARED * len(texts))]
        kept = [np.unique(own[~touches_instruction(np.isin(own, instruction))]) for own in hashes]
        owners = [np.full(len(own), first + problem) for problem, own in enumerate(kept)]
        return np.concatenate([EMPTY, *kept]), np.concatenate([EMPTY.astype(np.int64), *owners])

    def match(self, rows: Iterable[str]) -> Iterator[tuple[int, str, int]]:
        """(row, set, problem) of every match, some more than once."""
        numbers: list[int] = []
        lengths: list[int] = []
        first = 0
        for row, text in enumerate(rows):
            for owner in self._texts.get(squeeze_text(text), ()):
                yield row, *self._owners[owner]
            words = [self._numbers.get(word, 0) for word in WORD.findall(text.casefold())]
            numbers += words
            lengths.append(len(words))
            if len(numbers) >= WORDS_AT_ONCE:
                yield from self._match_grams(first, numbers, lengths)
                first, numbers, lengths = row + 1, [], []
        yield from self._match_grams(first, numbers, lengths)

    def _match_grams(self, first: int, numbers: list[int], lengths: list[int]) -> Iterator[tuple[int, str, int]]:
        """Of rows that follow each other, the first of this number. A word that no set has is 0."""
        words, row_of = np.array(numbers, np.uint64), np.repeat(np.arange(len(lengths)), lengths)
        hashes = hash_windows(words)
        if not len(hashes) or not len(self._grams):
            return
        unknown = np.concatenate([[0], np.cumsum(words == 0)])
        whole = (row_of[: len(hashes)] == row_of[WORDS_IN_A_ROW - 1 :]) & (unknown[WORDS_IN_A_ROW:] == unknown[: len(hashes)])
        start, end = np.searchsorted(self._grams, hashes, "left"), np.searchsorted(self._grams, hashes, "right")
        for window in np.flatnonzero(whole & (end > start)):
            for owner in self._of[start[window] : end[window]]:
                yield first + int(row_of[window]), *self._owners[owner]


def hash_windows(numbers: np.ndarray) -> np.ndarray:
    """[W] uint64, a number for each word -> [W - 12], a hash of each 13 in a row; empty where there are fewer."""
    count = len(numbers) - WORDS_IN_A_ROW + 1
    if count < 1:
        return EMPTY
    hashes = np.zeros(count, np.uint64)
    for place, factor in enumerate(FACTORS):
        hashes += numbers[place : place + count] * factor
    return hashes


def touches_instruction(common: np.ndarray) -> np.ndarray:
    """[W] which windows are an instruction -> [W], which share a word with one of these."""
    near = np.convolve(common, np.ones(2 * WORDS_IN_A_ROW - 1, int))[WORDS_IN_A_ROW - 1 :][: len(common)] if len(common) else common
    return near > 0


def squeeze_text(text: str) -> str:
    """The text without spaces and case."""
    return "".join(text.split()).casefold()
