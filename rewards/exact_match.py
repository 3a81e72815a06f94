"""Whether the completion is the answer, character by character."""

from __future__ import annotations

import re
from typing import Any


def exact_match(completion: str, answer: Any, *, pattern: str = "", ignore_case: bool = False, **columns: Any) -> float:
    r"""1.0 where the completion equals `answer` (or one of them, if it is a list), else 0.0. Whitespace is collapsed and stripped.

    pattern: a regular expression; the last match of its first group is compared instead of the completion (`<answer>(.*?)</answer>`).
    """
    if pattern:
        found = re.findall(pattern, completion, re.DOTALL)
        if not found:
            return 0.0
        completion = found[-1] if isinstance(found[-1], str) else found[-1][0]
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    return float(_collapse(completion, ignore_case) in [_collapse(str(one), ignore_case) for one in answers])


def _collapse(text: str, ignore_case: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text
