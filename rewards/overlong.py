"""A soft penalty for completions close to the length limit.

Source: DAPO (Yu et al. 2025, arXiv 2503.14476), equation 13.
"""

from __future__ import annotations

from typing import Any


def overlong(completion: str, completion_length: int, *, longest: int, buffer: int, **columns: Any) -> float:
    """0 up to longest - buffer tokens, then falling linearly to -1 at longest, -1 beyond it."""
    if not 0 < buffer <= longest:
        raise ValueError(f"args.buffer must be between 1 and args.longest={longest}, it is {buffer}")
    return -min(1.0, max(0.0, (completion_length - (longest - buffer)) / buffer))
