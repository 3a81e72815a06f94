"""Wordle: an environment whose methods are tools, as TRL has them."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any

from rlkit.errors import UserError

LETTERS = 5
WORDS = Path(__file__).with_suffix(".txt")


class Wordle:
    """The policy calls `guess`, and reads for each letter whether it is right (G), elsewhere in the word (Y) or not in it (-). It earns 1
    where it finds the word."""

    def __init__(self, guesses: int = 6, words: str | None = None) -> None:
        """words: a file with one word of five letters a line, in place of the one beside this file."""
        self.guesses = guesses
        self.words = _read_words(words or str(WORDS))

    def reset(self, word: str | None = None, seed: int = 0, **row: Any) -> str:
        """The word is that of the column `word`, else one drawn by the seed."""
        self.word = word.lower() if word else random.Random(seed).choice(self.words)
        self.left, self.done, self.found = self.guesses, False, False
        return f"\nFind a word of {LETTERS} letters with `guess`. You have {self.guesses} guesses."

    def guess(self, word: str) -> str:
        """Guess the word. The answer has a mark for each letter: G it is right, Y it is elsewhere in the word, - it is not in the word.

        Args:
            word: An English word of five letters.
        """
        word = word.strip().lower()
        if len(word) != LETTERS or not word.isascii() or not word.isalpha():
            raise ValueError(f"a guess has {LETTERS} letters from a to z")
        self.left -= 1
        self.found = word == self.word
        self.done = self.found or self.left == 0
        marks = " ".join(mark_letters(word, self.word))
        end = " Right." if self.found else f" The word was {self.word}." if self.done else f" {self.left} guesses left."
        return f"{' '.join(word.upper())}\n{marks}\n{end.strip()}"

    def get_reward(self) -> float:
        return float(self.found)

    def get_metrics(self) -> dict[str, float]:
        return {"guesses": self.guesses - self.left}


def mark_letters(guess: str, word: str) -> list[str]:
    """G, Y or - for each letter of the guess; a letter is marked Y at most as often as it stands in the word."""
    left = Counter(letter for letter, own in zip(word, guess, strict=True) if letter != own)
    marks = []
    for letter, own in zip(word, guess, strict=True):
        if letter == own:
            marks.append("G")
        elif left[own] > 0:
            left[own] -= 1
            marks.append("Y")
        else:
            marks.append("-")
    return marks


@functools.cache
def _read_words(file: str) -> list[str]:
    try:
        words = [line.strip().lower() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"wordle: words={file} cannot be read: {error}") from error
    if wrong := [word for word in words if len(word) != LETTERS] or ([] if words else ["(none)"]):
        raise UserError(f"wordle: words={file} needs words of {LETTERS} letters, one a line; it has {', '.join(wrong[:3])}")
    return words
