"""Bare math-verify, for comparison with toolkits that grade with it. It pays for 27 + 18 where the answer is 45: train with `accuracy`."""

from __future__ import annotations

import logging
from typing import Any

from math_verify import parse, verify  # type: ignore[import-untyped]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off: they need the main thread


def math_verify_score(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where math-verify finds the completion equal to `answer`, else 0.0. Raises ValueError where it cannot read the reference."""
    reference = parse(f"${answer}$", parsing_timeout=None)
    if not reference:
        raise ValueError(f"math-verify cannot read the reference answer {answer!r}")
    return float(verify(reference, parse(completion, parsing_timeout=None), timeout_seconds=None))


math_verify_score("1", "2")  # its patterns are compiled in the first call: now, and not within the timeout of the first sample
