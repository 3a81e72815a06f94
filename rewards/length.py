"""Shorter is better: from 1 for an empty completion to 0 at `longest` tokens. Weigh it lightly, or gate it by correctness."""

from __future__ import annotations

from typing import Any


def length(completion: str, completion_length: int, *, longest: int, **columns: Any) -> float:
    """1 - tokens / longest, not below 0. completion_length is in tokens, as the sampler counted them."""
    if longest <= 0:
        raise ValueError(f"args.longest must be above 0, it is {longest}")
    return max(0.0, 1.0 - completion_length / longest)
