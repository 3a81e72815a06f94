"""How alike are the completion and the answer? For transcriptions, copies, short free text."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

COMPARED = 5000  # characters of each that are looked at: the time grows with their product


def fuzzy_match(completion: str, answer: Any, *, threshold: float = 0.0, **columns: Any) -> float:
    """Twice the characters in common over all characters, from 0 to 1, case and runs of space aside; 0 below threshold.

    Source: Ratcliff and Obershelp, as in difflib. With a list of answers the most alike counts.
    """
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    ratio = max(SequenceMatcher(None, _plain(str(one)), _plain(completion), autojunk=False).ratio() for one in answers)
    return ratio if ratio >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()[:COMPARED]
