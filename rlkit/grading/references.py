"""The reference answers of a row: texts, numbers and lists are used; a box and <answer> are unwrapped."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from rlkit.grading.choices import read_choice
from rlkit.grading.extraction import read_boxes

TAGGED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)


def list_references(answer: Any) -> list[str]:
    """The texts of a reference, or of a list of them, one of which is right. Raises ValueError where one is not usable."""
    if hasattr(answer, "tolist"):  # numpy
        answer = answer.tolist()
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    if not answers:
        raise ValueError("the reference answer is empty: an empty list")
    return [_read_reference(one) for one in answers]


def _read_reference(answer: Any) -> str:
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, float) and math.isfinite(answer):
        return f"{Decimal(repr(answer)):f}".removesuffix(".0")  # 1e-07 would be read as 1 times e minus 7
    if not isinstance(answer, (str, int, Decimal)):
        kind = "not a finite number" if isinstance(answer, float) else f"of type {type(answer).__name__}"
        raise ValueError(f"the reference answer is {kind}: {answer!r:.200}; it must be a text, a number or a list of them")
    text = str(answer)
    if tagged := TAGGED.fullmatch(text):
        text = tagged[1]
    boxed, others = read_boxes(text)
    if others:
        raise ValueError(f"the reference answer has several boxes: {answer!r:.200}; write one text, or a list of right ones")
    text = text if boxed is None else boxed
    if not text.strip(" \n\t$"):
        raise ValueError(f"the reference answer is empty: {answer!r:.200}")
    return text


def list_letters(answer: Any) -> set[str]:
    """The letters of a reference to a choice: a letter, also with its option, a number with 0 for A, or a list of right ones.

    Raises ValueError where one is none of these.
    """
    return {_read_letter(one) for one in (answer if isinstance(answer, (list, tuple)) and answer else [answer])}


def _read_letter(answer: Any) -> str:
    if isinstance(answer, int) and 0 <= answer < len(string.ascii_uppercase):
        return string.ascii_uppercase[answer]
    choice = read_choice(str(answer), string.ascii_uppercase)
    if choice is None:
        raise ValueError(f"the reference answer must be one letter, also with its option, or a number from 0 to 25, it is {answer!r:.200}")
    return choice[0]


REFERENCE_CHECKS: Mapping[str, Callable[[Any], object]] = {"accuracy": list_references, "multiple_choice": list_letters}
