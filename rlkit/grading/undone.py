"""Whether an answer leaves arithmetic to do: 27 + 18, 9 * 5 and 90/2 are no answers where 45 is asked for."""

from __future__ import annotations

from fractions import Fraction
from math import gcd

from rlkit.grading.arithmetic import NoValue, TooLarge
from rlkit.grading.evaluation import evaluate_exactly
from rlkit.grading.expressions import Expression, walk

UNDONE_CALLS = frozenset({"sqrt", "cbrt", "log", "lg", "binomial", "permutations", "gcd", "lcm", "max", "min", "abs", "floor", "ceil"})
INVERSES = frozenset({"arcsin", "arccos", "arctan"})


def leaves_work(reference: Expression, given: Expression) -> bool:
    """Whether an answer to a number leaves arithmetic to do that the reference does not leave."""
    if is_undone(reference):
        return False
    if is_undone(given) or (_calls(given) & INVERSES) - _calls(reference):
        return True
    value = given.args[0] if given.kind == "neg" else given
    in_degrees = value.kind == "call" and any(part.kind == "degrees" for part in walk(value))
    return _rational(reference) is not None and _rational(given) is None and not in_degrees  # ln 8 / ln 2


def _calls(node: Expression) -> set[str]:
    return {part.value for part in walk(node) if part.kind == "call"}


def is_undone(node: Expression) -> bool:
    """Whether arithmetic is left that ends in a rational number: 27 + 18, 9 * 5, 90/2, 5!. Powers of numbers and 3/4 are done."""
    if node.kind == "mixed":
        return is_undone(node.args[0])
    if (
        node.kind == "div"
        and node.value != "sign"
        and all(part.kind in ("number", "neg") and _rational(part) is not None for part in node.args)
    ):
        above, below = _rational(node.args[0]), _rational(node.args[1])
        assert above is not None and below is not None
        return below <= 1 or above.denominator * below.denominator != 1 or gcd(int(above), int(below)) != 1
    if (node.kind == "neg" and node.args[0].kind == "neg") or (node.kind == "div" and node.value == "sign"):
        return True
    if node.kind == "pow" and node.args[0] == Expression("name", (), "i") and node.args[1].kind == "number":
        return True
    if node.kind == "add" and _has_like_terms(node):
        return True
    if node.kind == "mul" and _is_scientific(node):
        return False
    values = [_rational(part) for part in node.args]
    if node.kind in ("add", "mul", "div") and sum(value is not None for value in values) > 1:
        return True
    undone_call = node.kind == "call" and node.value in UNDONE_CALLS
    if (node.kind in ("factorial", "sum") or undone_call or (node.kind == "pow" and not _is_power(node))) and _rational(node) is not None:
        return True
    return any(is_undone(part) for part in node.args)


def _has_like_terms(total: Expression) -> bool:
    """Whether two terms that are not rational differ by a rational factor at most: pi + pi, 2 sqrt 2 + sqrt 2."""
    cores = [core for term in total.args if (core := _drop_rational_factors(term)) is not None]
    return len(cores) != len(set(cores))


def _drop_rational_factors(term: Expression) -> Expression | None:
    if _rational(term) is not None:
        return None
    if term.kind == "neg" or (term.kind == "div" and _rational(term.args[1]) is not None):
        return _drop_rational_factors(term.args[0])
    if term.kind == "mul":
        kept = tuple(sorted((part for part in term.args if _rational(part) is None), key=repr))
        return kept[0] if len(kept) == 1 else Expression("mul", kept)
    return term


def _is_scientific(node: Expression) -> bool:
    """3.0 * 10^8."""
    return (
        len(node.args) == 2 and node.args[0].kind in ("number", "decimal") and node.args[1].kind == "pow" and _is_ten(node.args[1].args[0])
    )


def _is_ten(node: Expression) -> bool:
    return node.kind == "number" and node.value == 10


def _is_power(node: Expression) -> bool:
    """A number to a whole number."""
    exponent = node.args[1].args[0] if node.args[1].kind == "neg" else node.args[1]
    return node.args[0].kind in ("number", "decimal", "div", "neg") and exponent.kind == "number"


def _rational(node: Expression) -> Fraction | None:
    try:
        return evaluate_exactly(node)
    except (TooLarge, NoValue):
        return None
