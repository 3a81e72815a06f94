r"""Whether the right letter is chosen: the final answer (rlkit.grading.extraction) is one letter, alone or with the text of its option."""

from __future__ import annotations

import string
from typing import Any

from rlkit.grading.choices import read_choice
from rlkit.grading.extraction import find_answer
from rlkit.grading.sentences import cut_reasons


def multiple_choice(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the chosen letter is `answer` (a letter, or a number with 0 for A; or one of them, if it is a list), else 0.0."""
    right = {_parse_letter(one) for one in (answer if isinstance(answer, (list, tuple)) and answer else [answer])}
    given = find_answer(completion)
    texts = [*given.texts, *map(cut_reasons, given.texts)] if given else []
    chosen = next(filter(None, (read_choice(text, string.ascii_uppercase) for text in texts)), None)
    return float(chosen is not None and chosen[0] in right)


def _parse_letter(answer: Any) -> str:
    if isinstance(answer, int) and 0 <= answer < 26:
        return string.ascii_uppercase[answer]
    choice = read_choice(str(answer), string.ascii_uppercase)
    if choice is None:
        raise ValueError(f"the reference answer must be one letter, also with its option, or a number from 0 to 25, it is {answer!r}")
    return choice[0]
