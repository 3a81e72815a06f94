"""How well the completion reverses the user's text, character by character: the task reverse-text of prime-rl and verifiers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

REVERSED = re.compile(r"<reversed_text>(.*?)</reversed_text>", re.DOTALL)
COMPARED_CHARACTERS = 5000  # of each: the time grows with their product


def reverse_text(completion: str, prompt: str | Sequence[dict[str, Any]], **columns: Any) -> float:
    """Twice the common characters of <reversed_text>...</reversed_text> and the reversed text, divided by all characters, 0 to 1.

    The text is the last message of the user. As in the public task, characters that are in more than 1 % of a text of at least 200 do not
    start a match. Source: Ratcliff and Obershelp, as in difflib.
    """
    text = prompt if isinstance(prompt, str) else next(str(m["content"]) for m in reversed(prompt) if m["role"] == "user")
    found = REVERSED.search(completion)
    answer = found[1].strip() if found else ""
    return SequenceMatcher(None, answer[:COMPARED_CHARACTERS], text[::-1][:COMPARED_CHARACTERS]).ratio()
