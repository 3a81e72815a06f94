"""Rewards that random text can win, so that a random model has something to learn."""

from __future__ import annotations

import zlib


def letters(completion: str) -> float:
    """The share of characters that are small letters."""
    return sum("a" <= c <= "z" for c in completion) / max(len(completion), 1)


def constant(completion: str) -> float:
    return 1.0


def distinct(completion: str) -> float:
    """Another number for every text."""
    return zlib.crc32(completion.encode()) / 2**32
