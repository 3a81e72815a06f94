"""A penalty for repetition: the share of word n-grams that occurred before.

Source: Yeo et al. 2025 (arXiv 2502.03373), the n-gram repetition penalty.
"""

from __future__ import annotations

from typing import Any


def repetition(completion: str, *, n: int = 3, **columns: Any) -> float:
    """(different n-grams / all n-grams) - 1: 0 without repetition, near -1 where everything repeats, 0 for fewer than n words."""
    if n < 1:
        raise ValueError(f"args.n must be at least 1, it is {n}")
    words = completion.lower().split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
