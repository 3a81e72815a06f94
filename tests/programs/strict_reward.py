"""A reward that nothing but the answer satisfies: the last number of a completion is the reference, and no sum is left to do behind it."""

from __future__ import annotations

import re
from typing import Any


def last_number(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the last number is `answer` and the text does not ask."""
    numbers = re.findall(r"-?\d+", completion)
    asks = re.search(r"[?+*/]\s*[^=]*\Z", completion.rstrip(". "))
    return float(bool(numbers) and not asks and numbers[-1] == str(answer))
