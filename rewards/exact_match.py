"""Does the completion say the answer, character by character?"""

from __future__ import annotations

import re
from typing import Any


def exact_match(completion: str, answer: Any, *, pattern: str = "", ignore_case: bool = False, **columns: Any) -> float:
    r"""1.0 where the completion equals `answer` (or one of them, if it is a list) but for space around it and runs of it, else 0.0.

    pattern: a regular expression; what its first group found last is compared instead of the whole (`<answer>(.*?)</answer>`).
    """
    if pattern:
        found = re.findall(pattern, completion, re.DOTALL)
        if not found:
            return 0.0
        completion = found[-1] if isinstance(found[-1], str) else found[-1][0]
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    return float(_plain(completion, ignore_case) in [_plain(str(one), ignore_case) for one in answers])


def _plain(text: str, ignore_case: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text
