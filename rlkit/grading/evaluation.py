r"""The value of an expression, exactly where it is rational, else to 300 digits; and whether two expressions are equal.

Expressions with symbols are compared at points (Schwartz, "Fast probabilistic algorithms for verification of polynomial identities", 1980).
The cost of every step is bounded before it is taken: what is larger is TooLarge. Nothing is random, and no time limit is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]

from rlkit.grading.arithmetic import (
    EXACT,
    EXACT_CALLS,
    LOG10_OF_2,
    MAX_DIGITS,
    NUMERIC,
    NUMERIC_CALLS,
    NoValue,
    TooLarge,
    check_digits,
    check_size,
)
from rlkit.grading.expressions import Expression, walk
from rlkit.grading.tokens import SYMMETRIC

MAX_STEPS = 2_000  # evaluated nodes, terms of sums included; of numbers that are not rational
MAX_EXACT_STEPS = 20_000
BITS_OF_A_STEP = 500  # of an exact result: a large one counts as many steps
DIGITS, POINT_DIGITS = 300, 60  # of constants, and of expressions with symbols
MORE = 1.2  # a value that changes when it is computed with more digits is a computed zero
DECIMAL_PLACES, SIGNIFICANT_DIGITS = 6, 3  # the fewest of a rounded decimal that stands for an exact value
INTEGER_SYMBOLS = frozenset("nkmNKM")
INTEGER_POINTS = {True: (7, 2, 11, 4, 3, 9, 5, 13), False: (7, -2, 11, -4, 3, -9, 5, -13)}  # of n, N and of others
REAL_POINTS = ("1.3717", "0.4142", "-0.7236", "2.6458", "-1.9021", "0.1933", "-3.3166", "5.2915")
FEWEST_POINTS = 3  # at which two expressions with symbols must agree
EXACT_FIRST = frozenset({"number", "decimal", "mixed", "base", "factorial"})
EXACT_CALLS_FIRST = frozenset({"gcd", "lcm", "permutations", "binomial"})
UNORDERED = frozenset({"add", "mul"})
Values = Mapping[str, Any]


def find_symbols(tree: Expression) -> frozenset[str]:
    """The names in an expression, without e and i and without the variables of its sums."""
    bound = {node.value[1] for node in walk(tree) if node.kind == "sum"}
    return frozenset(node.value for node in walk(tree) if node.kind == "name") - bound - {"e", "i"}


def sort_terms(node: Expression, bound: tuple[str, ...] = ()) -> Expression:
    """The expression with its sums and products flat and sorted, and its bound variables without names."""
    if node.kind == "sum":
        bound = (*bound, node.value[1])
        return Expression("sum", tuple(sort_terms(part, bound) for part in node.args), node.value[0])
    if node.kind == "name" and node.value in bound:
        return Expression("name", (), len(bound) - bound.index(node.value))
    args = [sort_terms(part, bound) for part in node.args]
    if node.kind in UNORDERED:
        args = [inner for part in args for inner in (part.args if part.kind == node.kind else (part,))]
    if node.kind in UNORDERED or (node.kind == "call" and node.value in SYMMETRIC):
        args.sort(key=repr)
    return Expression("number" if node.kind == "decimal" else node.kind, tuple(args), None if node.kind == "div" else node.value)


def evaluate_exactly(tree: Expression) -> Fraction | None:
    """The rational value of an expression; None where it has none, or is not seen to be rational. Raises TooLarge, NoValue."""
    value: Fraction | None = _Exact({}).evaluate(tree)
    return value


def is_equal(first: Expression, second: Expression) -> bool:
    """Whether two expressions have the same value, for all values of their symbols. What is too large equals only itself."""
    if sort_terms(first) == sort_terms(second):
        return True
    try:
        if find_symbols(first) | find_symbols(second):
            return _is_equal_at_points(first, second)
        one, other = evaluate_exactly(first), evaluate_exactly(second)
        if one is not None and other is not None:
            return one == other or _is_rounded(first, second, one, other) or _is_rounded(second, first, other, one)
        digits = DIGITS + _count_digits((first, second), {})
        return _is_close(_evaluate_stably(first, {}, digits), _evaluate_stably(second, {}, digits), digits)
    except (TooLarge, NoValue):
        return False


def count_decimals(tree: Expression) -> int | None:
    """Decimal places of a literal decimal number, also of a negative one; None for all else."""
    tree = tree.args[0] if tree.kind == "neg" and tree.args[0].kind == "decimal" else tree
    if tree.kind != "decimal":
        return None
    denominator = tree.value.denominator  # 2^a 5^b
    twos = (denominator & -denominator).bit_length() - 1
    fives = round(math.log(denominator >> twos, 5)) if denominator >> twos > 1 else 0
    return int(max(twos, fives))


def _is_rounded(decimal: Expression, other: Expression, value: Fraction, exact: Fraction) -> bool:
    """Whether a decimal is a fraction, rounded to at least six places and three digits: 0.333333 is 1/3, 0.33 is not."""
    places = count_decimals(decimal)
    if places is None or places < DECIMAL_PLACES or count_decimals(other) is not None:
        return False
    digits = abs(decimal.args[0].value if decimal.args else decimal.value) * 10**places
    return bool(digits >= 10 ** (SIGNIFICANT_DIGITS - 1) and 2 * abs(value - exact) * 10**places <= 1)


def _is_close(first: Any, second: Any, digits: int) -> bool:
    with mpmath.workdps(digits):
        first, second = _to_float(first), _to_float(second)
        if mpmath.isinf(first) or mpmath.isinf(second):
            return bool(first == second)
        return bool(abs(first - second) <= mpmath.mpf(10) ** (20 - digits) * max(abs(first), abs(second)))


def _is_equal_at_points(first: Expression, second: Expression) -> bool:
    symbols = sorted(find_symbols(first) | find_symbols(second))
    rounded = [{node.value for node in walk(tree) if node.kind == "call"} & {"abs", "floor", "ceil"} for tree in (first, second)]
    agreed = 0
    for number in range(len(REAL_POINTS)):
        point = {name: _choose_value(name, number + 3 * at, whole=rounded[0] == rounded[1]) for at, name in enumerate(symbols)}
        try:
            digits = POINT_DIGITS + _count_digits((first, second), point)
            values = _evaluate_stably(first, point, digits), _evaluate_stably(second, point, digits)
        except (TooLarge, NoValue):
            continue
        imaginary = [isinstance(value, mpmath.mpc) for value in values]
        if imaginary[0] != imaginary[1]:
            continue  # a point at which one of them is not defined as a real function: ln x^2 and 2 ln x
        if not _is_close(*values, digits):
            return False
        agreed += 1
    return agreed >= FEWEST_POINTS


def is_proportional(first: Expression, second: Expression) -> bool:
    """Whether two expressions with symbols differ by a constant factor, so that they are zero at the same points."""
    symbols = sorted(find_symbols(first) | find_symbols(second))
    ratios = []
    for number in range(len(REAL_POINTS)):
        point = {name: Fraction(REAL_POINTS[(number + 3 * at) % len(REAL_POINTS)]) for at, name in enumerate(symbols)}
        try:
            ratios.append(_evaluate_stably(Expression("div", (first, second)), point, POINT_DIGITS))
        except (TooLarge, NoValue):
            continue
    return len(ratios) >= FEWEST_POINTS and all(_is_close(ratios[0], ratio, POINT_DIGITS) for ratio in ratios)


def _choose_value(name: str, number: int, whole: bool) -> Fraction:
    if whole and name[0] in INTEGER_SYMBOLS:
        points = INTEGER_POINTS[name[0] in "nN"]
        return Fraction(points[number % len(points)])
    return Fraction(REAL_POINTS[number % len(REAL_POINTS)])


def _evaluate_stably(tree: Expression, values: Values, digits: int) -> Any:
    """The value: a Fraction, mpf or mpc. What changes with more digits is zero; an imaginary part of zero is dropped."""
    if (exact := _Exact(values).evaluate(tree)) is not None:
        return exact
    results = []
    for precision in (digits, int(MORE * digits)):
        with mpmath.workdps(precision):
            results.append(mpmath.mpc(_Numeric(values).evaluate(tree)))
    with mpmath.workdps(digits):
        real, imaginary = (_drop_noise(getattr(results[0], part), getattr(results[1], part), digits) for part in ("real", "imag"))
        return mpmath.mpc(real, imaginary) if imaginary else real


def _count_digits(trees: tuple[Expression, Expression], values: Values) -> int:
    """The digits that are needed so that no part of two expressions is lost beside a larger one: of 1 - e^-1000 over 434."""
    sizes = [0.0]
    for tree in trees:
        with mpmath.workdps(30):
            evaluator = _Numeric(values)
            evaluator.evaluate(tree)
            sizes += evaluator.sizes
    range_of_sizes = int(max(sizes) - min(sizes))
    if range_of_sizes > MAX_DIGITS:
        raise TooLarge("too many digits")
    return range_of_sizes


def _drop_noise(value: Any, again: Any, digits: int) -> Any:
    stable = mpmath.isinf(value) or abs(value - again) <= abs(value) * mpmath.mpf(10) ** (-digits // 3)
    return value if stable else mpmath.mpf(0)


def _to_float(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class _Evaluator:
    """Counts its steps, runs through sums, and knows the values of symbols."""

    max_steps = MAX_STEPS

    def __init__(self, values: Values) -> None:
        self.values, self.steps = dict(values), 0

    def evaluate(self, node: Expression) -> Any:
        self.steps += 3 if node.kind == "call" else 1
        if self.steps > self.max_steps:
            raise TooLarge("too many steps")
        if node.kind == "sum":
            return self.evaluate_range(node)
        return self.compute(node)

    def compute(self, node: Expression) -> Any:
        raise NotImplementedError

    def evaluate_range(self, node: Expression) -> Any:
        r"""A \sum or \prod over whole numbers."""
        kind, variable = node.value
        first, last = (_Exact(self.values).evaluate(bound) for bound in node.args[:2])
        if first is None or last is None or first.denominator != 1 or last.denominator != 1 or variable in self.values:
            raise NoValue("the bounds of a sum must be whole numbers")
        if last - first > self.max_steps:
            raise TooLarge("too many terms")
        total: Any = Fraction(0 if kind == "sum" else 1)
        try:
            for number in range(int(first), int(last) + 1):
                self.values[variable] = Fraction(number)
                term = self.evaluate(node.args[2])
                if term is None:
                    return None
                total = self.combine(kind, total, term)
        finally:
            self.values.pop(variable, None)
        return total

    def combine(self, kind: str, total: Any, term: Any) -> Any:
        return total + term if kind == "sum" else total * term


class _Exact(_Evaluator):
    """Rational arithmetic. None: not rational, or not seen to be."""

    max_steps = MAX_EXACT_STEPS

    def compute(self, node: Expression) -> Fraction | None:
        if node.kind in ("number", "decimal", "mixed"):
            return Fraction(node.value)
        if node.kind == "name":
            return None if node.value not in self.values else Fraction(self.values[node.value])
        if node.kind == "base":
            return Fraction(_read_digits(node))
        if node.kind not in EXACT and node.kind != "call":
            return None
        values = [self.evaluate(part) for part in node.args]
        if any(value is None for value in values):
            return None
        compute = EXACT_CALLS.get(node.value) if node.kind == "call" else EXACT[node.kind]
        result = check_digits(compute(*values)) if compute else None
        if result is not None:
            self.steps += result.numerator.bit_length() // BITS_OF_A_STEP
        return result

    def combine(self, kind: str, total: Any, term: Any) -> Any:
        return check_digits(super().combine(kind, total, term))


class _Numeric(_Evaluator):
    """Arithmetic of real and complex numbers at the working precision of mpmath. sizes: the decimal logarithms of all values."""

    def __init__(self, values: Values) -> None:
        super().__init__(values)
        self.sizes: list[float] = []

    def evaluate(self, node: Expression) -> Any:
        value = super().evaluate(node)
        size = abs(_to_float(value))
        if size and not mpmath.isinf(size):
            self.sizes.append(mpmath.mag(size) * LOG10_OF_2)
        return value

    def compute(self, node: Expression) -> Any:
        if node.kind in EXACT_FIRST or (node.kind == "call" and node.value in EXACT_CALLS_FIRST):
            exact = _Exact(self.values).evaluate(node)
            if exact is not None:
                return _to_float(exact)
        if node.kind in ("name", "constant"):
            return self._look_up(node.value)
        values = [_to_float(self.evaluate(part)) for part in node.args]
        compute = NUMERIC_CALLS.get(node.value) if node.kind == "call" else NUMERIC.get(node.kind)
        if compute is None:
            raise NoValue(f"{node.kind} {node.value}")
        try:
            return check_size(compute(*values))
        except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
            if isinstance(error, TooLarge):
                raise
            raise NoValue(str(error)) from None

    def _look_up(self, name: str) -> Any:
        if name in self.values:
            return _to_float(self.values[name])
        constants = {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1), "infinity": mpmath.inf}
        if name not in constants:
            raise NoValue(name)
        return +constants[name]


def _read_digits(node: Expression) -> int:
    """The value of 1010_2, that of its digits in its base."""
    text, base = node.value
    base = evaluate_exactly(base)
    if base is None or base.denominator != 1 or not 2 <= base <= 36:
        raise NoValue("no base")
    try:
        return int(text, int(base))
    except ValueError:
        raise NoValue("a digit that is not of its base") from None
