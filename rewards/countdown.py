r"""The numbers game: reach the target with + - * / and brackets, each given number used exactly once.

The expression is what stands in the last \boxed{} or <answer>, else the last line; a `= target` after it is left aside.
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
    given = nums if nums is not None else numbers
    wanted = target if target is not None else columns.get("answer")
    if given is None or wanted is None:
        raise ValueError(f"countdown needs the columns nums (or numbers) and target (or answer); the row has {sorted(columns)}")
    text = _expression(completion)
    try:
        tree = ast.parse(text, mode="eval").body
        used: list[int] = []
        value = _value(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return 0.0
    return float(sorted(used) == sorted(int(number) for number in given) and value == Fraction(str(wanted)))


def _expression(completion: str) -> str:
    found = ANSWER.findall(completion)
    lines = completion.strip().splitlines() or [""]
    text = next((part for part in found[-1] if part), "") if found else lines[-1]
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/").replace("×", "*").replace("÷", "/")
    return text.split("=")[0].strip()


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(left, used), _value(right, used))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
    raise ValueError("only whole numbers, + - * / and brackets are allowed")
