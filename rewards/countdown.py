r"""The numbers game: reach the target with + - * / and brackets, using each given number exactly once.

The expression is the content of the last \boxed{} or <answer>, else the last line; a `= target` after it is ignored.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

ANSWER = re.compile(r"<answer>(.*?)</answer>|\\boxed\s*\{([^{}]*)\}", re.DOTALL)

OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def countdown(
    completion: str, nums: Sequence[int] | None = None, numbers: Sequence[int] | None = None, target: Any = None, **columns: Any
) -> float:
    """1.0 where the expression uses exactly the numbers of the column `nums` (or `numbers`) and its value is `target` (or `answer`)."""
    available = nums if nums is not None else numbers
    goal = target if target is not None else columns.get("answer")
    if available is None or goal is None:
        raise ValueError(f"countdown needs the columns nums (or numbers) and target (or answer); the row has {sorted(columns)}")
    text = _find_expression(completion)
    try:
        tree = ast.parse(text, mode="eval").body
        used: list[int] = []
        value = _evaluate(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return 0.0
    return float(sorted(used) == sorted(int(number) for number in available) and value == Fraction(str(goal)))


def _find_expression(completion: str) -> str:
    found = ANSWER.findall(completion)
    lines = completion.strip().splitlines() or [""]
    text = next((part for part in found[-1] if part), "") if found else lines[-1]
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace("×", "*").replace("÷", "/")
    return text.split("=")[0].strip()


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_evaluate(left, used), _evaluate(right, used))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, used)
    raise ValueError("only whole numbers, + - * / and brackets are allowed")
