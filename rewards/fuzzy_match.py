"""How similar the completion and the answer are. For transcriptions, copies, short free text."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

COMPARED_CHARACTERS = 5000  # of each: the time grows with their product


def fuzzy_match(completion: str, answer: Any, *, threshold: float = 0.0, **columns: Any) -> float:
    """Twice the common characters divided by all characters, 0 to 1; 0 below threshold. Ignores case and repeated whitespace.

    With a list of answers the most similar one counts. Source: Ratcliff and Obershelp, as in difflib.
    """
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    ratio = max(SequenceMatcher(None, _collapse(str(one)), _collapse(completion), autojunk=False).ratio() for one in answers)
    return ratio if ratio >= threshold else 0.0


def _collapse(text: str) -> str:
    return " ".join(text.split()).casefold()[:COMPARED_CHARACTERS]
