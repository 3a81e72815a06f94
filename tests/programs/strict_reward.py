"""A reward that nothing but the answer satisfies: the last number of a completion is the reference."""

from __future__ import annotations

import re
from typing import Any


def last_number(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the last number is `answer` and the text does not end with a question."""
    numbers = re.findall(r"\d+", completion)
    return float(bool(numbers) and numbers[-1] == str(answer) and not completion.rstrip().endswith("?"))
