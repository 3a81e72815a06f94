"""Shorter is better: from 1 for an empty completion to 0 at `longest` tokens. Give it a small weight, or a gate by correctness."""

from __future__ import annotations

from typing import Any


def length(completion: str, completion_length: int, *, longest: int, **columns: Any) -> float:
    """1 - tokens / longest, at least 0. completion_length: in tokens, as counted by the sampler."""
    if longest <= 0:
        raise ValueError(f"args.longest must be above 0, it is {longest}")
    return max(0.0, 1.0 - completion_length / longest)
