r"""Is the right letter chosen? It is looked for in \boxed{}, in <answer>, after "answer is", and as the last line, in this order."""

from __future__ import annotations

import re
from typing import Any

LETTER = r"[\(\[]?\b([A-Z])\b[\)\]]?"
PLACES = (
    re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{\s*)?" + LETTER, re.IGNORECASE),
    re.compile(r"<answer>\s*(?:option\s+)?\**" + LETTER, re.IGNORECASE),
    re.compile(r"(?i:answer|choice|option)\s*(?i:is)?\s*:?\s*\**\s*(?i:option\s+)?" + LETTER),
    re.compile(r"^\s*\**" + LETTER + r"[.:)*\s]*\s*\Z", re.MULTILINE),
)


def multiple_choice(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the last letter chosen is `answer` (a letter, or a number counted from 0 for A), else 0.0."""
    right = chr(ord("A") + answer) if isinstance(answer, int) else str(answer).strip().strip("().[]").upper()
    if not re.fullmatch("[A-Z]", right):
        raise ValueError(f"the reference answer must be one letter or a number from 0 to 25, it is {answer!r}")
    for place in PLACES:
        if found := place.findall(completion):
            return float(found[-1].upper() == right)
    return 0.0
