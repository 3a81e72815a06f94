r"""Whether the right letter is chosen: the final answer (rlkit.grading.extraction) is one letter, alone or with the text of its option."""

from __future__ import annotations

import string
from typing import Any

from rlkit.grading.choices import read_choice
from rlkit.grading.extraction import find_answer
from rlkit.grading.references import list_letters
from rlkit.grading.sentences import cut_reasons


def multiple_choice(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the chosen letter is `answer` (a letter, or a number with 0 for A; or one of them, if it is a list), else 0.0."""
    right = list_letters(answer)
    given = find_answer(completion)
    texts = [*given.texts, *map(cut_reasons, given.texts)] if given else []
    chosen = next(filter(None, (read_choice(text, string.ascii_uppercase) for text in texts)), None)
    return float(chosen is not None and chosen[0] in right)
