"""Whether an answer leaves arithmetic to do: 27 + 18, 9 * 5 and 90/2 are no answers where 45 is asked for."""

from __future__ import annotations

from fractions import Fraction
from math import gcd

from rlkit.grading.arithmetic import NoValue, TooLarge
from rlkit.grading.evaluation import evaluate_exactly, find_symbols
from rlkit.grading.expressions import Expression, walk

UNDONE_CALLS = frozenset({"sqrt", "cbrt", "log", "lg", "binomial", "permutations", "gcd", "lcm", "max", "min", "abs", "floor", "ceil"})
IMAGINARY = Expression("name", (), "i")
INVERSES = frozenset({"arcsin", "arccos", "arctan"})


def leaves_work(reference: Expression, given: Expression) -> bool:
    """Whether an answer leaves work to do that the reference does not leave: 27 + 18, 5x + 3x, sqrt 2 + sqrt 2, ln 8 / ln 2."""
    if is_undone(reference):
        return False
    if is_undone(given):
        return True
    if find_symbols(reference):
        return False
    if (_calls(given) & INVERSES) - _calls(reference) or _count_logarithms(given) > max(_count_logarithms(reference), 1):
        return True
    if any(_has_imaginary_work(node) for node in walk(given)) and not any(_has_imaginary_work(node) for node in walk(reference)):
        return True
    value = given.args[0] if given.kind == "neg" else given
    rational = _rational(reference)
    in_degrees = value.kind == "call" and any(part.kind == "degrees" for part in walk(value)) and rational != int(rational or 0)
    return rational is not None and _rational(given) is None and not in_degrees


def _count_logarithms(node: Expression) -> int:
    """Logarithms, of which a quotient of two, a change of base, is one."""
    inside = [_count_logarithms(part) for part in node.args]
    if node.kind == "div" and inside[0] == inside[1] == 1:
        return 1
    return sum(inside) + (node.kind == "call" and node.value in ("ln", "log", "lg"))


def _has_imaginary_work(node: Expression) -> bool:
    """Whether complex numbers are to be multiplied or divided."""
    sums = [part for part in node.args if part.kind == "add" and IMAGINARY in walk(part)]
    return (node.kind in ("mul", "pow") and len(sums) > (node.kind == "mul")) or (node.kind == "div" and IMAGINARY in walk(node.args[1]))


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
        return abs(below) <= 1 or above.denominator * below.denominator != 1 or gcd(int(above), int(below)) != 1
    if (node.kind == "neg" and node.args[0].kind == "neg") or (node.kind == "div" and node.value == "sign"):
        return True
    if node.kind == "pow" and node.args[0] == Expression("name", (), "i") and node.args[1].kind == "number":
        return True
    if (node.kind == "add" and _has_like_terms(node)) or _is_trivial(node) or _is_reducible(node):
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


def _is_trivial(node: Expression) -> bool:
    """A term of 0, a factor of 1, a divisor of 1, an exponent of 0 or 1."""
    idle = {"add": (0,), "mul": (1, 0), "div": (1,), "pow": (0, 1)}.get(node.kind, ())
    parts = node.args[1:] if node.kind in ("div", "pow") else node.args
    return any(part.kind in ("number", "decimal") and part.value in idle for part in parts)


def _is_reducible(node: Expression) -> bool:
    """Whether a factor of a constant cancels, 2 pi / 12, or two roots are to be multiplied."""
    if (
        node.kind == "mul"
        and sum(part.kind == "call" and part.value == "sqrt" and _rational(part.args[0]) is not None for part in node.args) > 1
    ):
        return True
    if node.kind != "div" or find_symbols(node):
        return False
    above, below = node.args
    factors = [value for part in (above.args if above.kind == "mul" else (above,)) if (value := _rational(part)) is not None]
    divisor = _rational(below)
    if divisor is not None and above.kind == "call" and above.value == "sqrt" and (radicand := _rational(above.args[0])) is not None:
        return divisor.denominator == 1 and radicand.denominator == 1 and radicand % divisor**2 in (0,) and abs(divisor) > 1
    return above.kind == "mul" and divisor is not None and any(_have_common_factor(value, divisor) for value in factors)


def _have_common_factor(first: Fraction, second: Fraction) -> bool:
    return first.denominator == second.denominator == 1 and gcd(int(first), int(second)) > 1


def _has_like_terms(total: Expression) -> bool:
    """Whether two terms that are not rational differ by a rational factor at most: pi + pi, 2 sqrt 2 + sqrt 2."""
    cores = [core for term in total.args if (core := _drop_rational_factors(term)) is not None]
    return len(cores) != len(set(cores))


def _drop_rational_factors(term: Expression) -> Expression | None:
    if _rational(term) is not None:
        return None
    if term.kind == "call" and term.value == "sqrt" and len(term.args) == 1 and term.args[0].kind == "number":
        return Expression("call", (Expression("number", (), Fraction(_drop_squares(int(term.args[0].value)))),), "sqrt")
    if term.kind == "neg" or (term.kind == "div" and _rational(term.args[1]) is not None):
        return _drop_rational_factors(term.args[0])
    if term.kind == "mul":
        cores = (_drop_rational_factors(part) for part in term.args)
        kept = tuple(sorted((core for core in cores if core is not None), key=repr))
        return kept[0] if len(kept) == 1 else Expression("mul", kept)
    return term


def _drop_squares(number: int) -> int:
    """12 as 3: without its square factors, as far as they are small."""
    for factor in range(2, 100):
        while number and number % factor**2 == 0:
            number //= factor**2
    return number


def _is_scientific(node: Expression) -> bool:
    """3.0 * 10^8."""
    return (
        len(node.args) == 2 and node.args[0].kind in ("number", "decimal") and node.args[1].kind == "pow" and _is_ten(node.args[1].args[0])
    )


def _is_ten(node: Expression) -> bool:
    return node.kind == "number" and node.value == 10


def _is_power(node: Expression) -> bool:
    """A number to a whole number."""
    negative = node.args[1].kind == "neg"
    exponent = node.args[1].args[0] if negative else node.args[1]
    return node.args[0].kind in (("number", "decimal") if negative else ("number", "decimal", "div", "neg")) and exponent.kind == "number"


def _rational(node: Expression) -> Fraction | None:
    try:
        return evaluate_exactly(node)
    except (TooLarge, NoValue):
        return None
