r"""The numbers game: reach the target with + - * / and brackets, using each given number exactly once.

The expression is the final answer (rlkit.grading.extraction), in LaTeX or plain text; `target = expression` and `expression = target` are
read too, and must be true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rlkit.grading.arithmetic import NoValue, TooLarge
from rlkit.grading.decoration import strip_decoration
from rlkit.grading.evaluation import evaluate_exactly
from rlkit.grading.expressions import Expression, parse_expression, walk
from rlkit.grading.extraction import find_answer
from rlkit.grading.sentences import NEGATION
from rlkit.grading.tokens import NotUnderstood

ALLOWED = frozenset({"number", "add", "mul", "div", "neg"})


def countdown(
    completion: str, nums: Sequence[int] | None = None, numbers: Sequence[int] | None = None, target: Any = None, **columns: Any
) -> float:
    """1.0 where the expression uses exactly the numbers of the column `nums` (or `numbers`) and its value is `target` (or `answer`)."""
    available = nums if nums is not None else numbers
    goal = target if target is not None else columns.get("answer")
    if available is None or goal is None:
        raise ValueError(f"countdown needs the columns nums (or numbers) and target (or answer); the row has {sorted(columns)}")
    given = find_answer(completion)
    return float(given is not None and any(_reaches(text, sorted(map(int, available)), Fraction(str(goal))) for text in given.texts))


def _reaches(text: str, available: list[int], goal: Fraction) -> bool:
    """Whether one side of the text is the expression, and the others have its value."""
    if len(text) > 2000 or NEGATION.search(text):
        return False
    try:
        sides = [parse_expression(side) for side in re.sub(r"^[a-zA-Z\s:]+(?=[-\d(\\])", "", strip_decoration(text)).split("=")]
        return any(_list_numbers(side) == available for side in sides) and all(evaluate_exactly(side) == goal for side in sides)
    except (NotUnderstood, NoValue, TooLarge):
        return False


def _list_numbers(tree: Expression) -> list[int] | None:
    """The numbers of an expression, sorted; None where it has anything but whole numbers, + - * / and brackets."""
    nodes = walk(tree)
    if any(node.kind not in ALLOWED for node in nodes):
        return None
    return sorted(int(node.value) for node in nodes if node.kind == "number")
