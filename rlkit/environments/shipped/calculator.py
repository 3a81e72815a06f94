"""A calculator: one plain function."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

LARGEST_BITS = 4096  # of a whole number; a power beyond it would take all memory
LONGEST = 1000  # characters of an expression
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "floor", "ceil", "gcd", "lcm")},
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
}
CONSTANTS = {"pi": math.pi, "e": math.e}


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression, such as (2 + 3) * 4 / sqrt(16).

    Args:
        expression: Numbers, + - * / // % **, brackets, pi, e, and functions such as sqrt, log, sin, floor, gcd, abs, min, max, round.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"an expression has at most {LONGEST} characters")
    return str(_evaluate(ast.parse(expression.strip(), mode="eval").body))


def _evaluate(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_evaluate(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _apply(op, _evaluate(left), _evaluate(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(_evaluate, args))
    raise ValueError(f"not an arithmetic expression: {ast.unparse(node)[:80]}")


def _apply(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if isinstance(op, ast.Pow) else left.bit_length() + right.bit_length()
        if bits > LARGEST_BITS:
            raise ValueError("the result is too large")
    return OPERATORS[type(op)](left, right)
