r"""Whether the last \boxed{...}, else the last number of a completion is the answer as it is written: nothing is read into it.

It is the default second opinion on `accuracy` (eval.second_opinion): simple enough that it is hard to deceive, too simple to be trained on.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rlkit.grading.extraction import read_boxes
from rlkit.grading.references import list_references

SEARCHED_CHARACTERS = 2000  # at the end of a completion
NUMBER = re.compile(
    r"(?:(?<![\w)}])-)?(?<!\d)(?:\\[dt]?frac\{(-?\d{1,40})\}\{(\d{1,40})\}|\d{1,40}(?:,\d{3})*(?:\.\d{1,40})?(?:/\d{1,40})?(?!\d))"
)
IGNORED = re.compile(r"\s|\$|\\[,;!]|\\(?:left|right)\b")


def strict_accuracy(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where it is `answer` (or one of them, if it is a list), else 0.0. 45.0 and 45, 1/2 and \\frac{1}{2} are the same numbers.

    Raises ValueError where the reference is blank or of a kind that cannot be graded.
    """
    box = read_boxes(completion)[0]
    text = completion[-SEARCHED_CHARACTERS:] if box is None else box
    return float(any(_is_written(reference, text, box is not None) for reference in list_references(answer)))


def _is_written(reference: str, text: str, boxed: bool) -> bool:
    wanted, numbers = NUMBER.fullmatch(_squeeze(reference)), list(NUMBER.finditer(IGNORED.sub("", text) if boxed else text))
    if wanted:
        return bool(numbers) and _read_number(numbers[-1]) == _read_number(wanted)
    plain = _squeeze(text)
    return plain == _squeeze(reference) if boxed else plain.endswith(_squeeze(reference))


def _read_number(found: re.Match[str]) -> Fraction | None:
    """None for a fraction over zero."""
    sign = -1 if found[0].startswith("-") else 1
    over, _, under = (found[1], "/", found[2]) if found[1] else found[0].lstrip("-").replace(",", "").partition("/")
    return sign * Fraction(over) / Fraction(under or 1) if Fraction(under or 1) else None


def _squeeze(text: str) -> str:
    return IGNORED.sub("", text).rstrip(".").casefold()
