"""A penalty for saying the same again: the share of n-grams of words that stood there before.

Source: Yeo et al. 2025 (arXiv 2502.03373), the n-gram repetition penalty.
"""

from __future__ import annotations

from typing import Any


def repetition(completion: str, *, n: int = 3, **columns: Any) -> float:
    """(different n-grams / all n-grams) - 1: 0 where nothing repeats, near -1 where everything does, 0 for less than n words."""
    if n < 1:
        raise ValueError(f"args.n must be at least 1, it is {n}")
    words = completion.lower().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
