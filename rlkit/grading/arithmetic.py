"""Arithmetic of expressions, exact on fractions and numeric by mpmath. The size of each result is bounded before it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped]

MAX_DIGITS = 20_000  # of an exact number
LOG10_OF_2 = 0.30103
MAX_LOG10 = 1e6  # of a number that is not rational


class TooLarge(ValueError):
    """The value has too many digits, or takes too many steps."""


class NoValue(ValueError):
    """The expression has no value: a division by zero, an unknown function, a symbol without a value."""


def check_digits(value: Fraction | None) -> Fraction | None:
    if value is not None and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_DIGITS * 3.33:
        raise TooLarge("too many digits")
    return value


def check_size(value: Any) -> Any:
    if mpmath.isnan(value):
        raise NoValue("not a number")
    size = abs(value)
    if not mpmath.isinf(size) and size and abs(mpmath.mag(size)) * LOG10_OF_2 > MAX_LOG10:
        raise TooLarge("too large or too small")
    return value


def _power_exactly(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator == 1:
        if abs(exponent) > 10**9 and abs(base) not in (0, 1):
            raise TooLarge("a large power")
        if abs(exponent) <= 10**9 and abs(exponent) * math.log10(max(abs(base.numerator), base.denominator)) > MAX_DIGITS:
            raise TooLarge("a large power")
        if not base and exponent < 0:
            raise NoValue("a division by zero")
        return base ** int(exponent) if abs(base) not in (0, 1) else base ** (2 + int(exponent) % 2 if exponent else 0)
    if base >= 0 and exponent.denominator <= 64:
        root = [_find_root(part, exponent.denominator) for part in (base.numerator, base.denominator)]
        if root[0] is not None and root[1] is not None:
            return _power_exactly(Fraction(root[0], root[1]), Fraction(exponent.numerator))
    return None


def _find_root(number: int, degree: int) -> int | None:
    """The whole root of a whole number, or None; of a large one only a square root is looked for."""
    if degree != 2 and number.bit_length() > 4096:
        return None
    if degree == 2:
        root = math.isqrt(number)
    else:
        root, low = 1 << -(-number.bit_length() // degree), 0
        while low < root:  # bisection between 0 and a power of two
            middle = (low + root) // 2
            low, root = (middle + 1, root) if middle**degree < number else (low, middle)
    return root if root**degree == number else None


def _divide_exactly(above: Fraction, below: Fraction) -> Fraction:
    if not below:
        raise NoValue("a division by zero")
    return above / below


def _log_exactly(value: Fraction, base: Fraction = Fraction(10)) -> Fraction | None:
    """The whole logarithm, or None."""
    if value <= 0 or base <= 0 or base == 1:
        raise NoValue("no logarithm")
    step = math.log(base.numerator) - math.log(base.denominator)
    guess = round((math.log(value.numerator) - math.log(value.denominator)) / step) if abs(step) > 1e-9 else MAX_DIGITS
    return Fraction(guess) if abs(guess) < MAX_DIGITS and _power_exactly(base, Fraction(guess)) == value else None


def _count(function: Callable[..., int]) -> Callable[..., Fraction]:
    """A function of whole numbers from 0 to 5,000."""

    def compute(*values: Fraction) -> Fraction:
        if any(value.denominator != 1 or value < 0 for value in values):
            raise NoValue("whole numbers are expected")
        if any(value > 5000 for value in values):
            raise TooLarge("large factorials")
        return Fraction(function(*map(int, values)))

    return compute


EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda *terms: sum(terms, Fraction(0)),
    "mul": lambda *factors: math.prod(factors, start=Fraction(1)),
    "div": _divide_exactly,
    "neg": lambda value: -value,
    "pow": _power_exactly,
    "factorial": _count(math.factorial),
    "percent": lambda value: value / 100,
}
EXACT_CALLS: dict[str, Callable[..., Fraction | None]] = {
    "sqrt": lambda value, degree=Fraction(2): _power_exactly(value, _divide_exactly(Fraction(1), degree)),
    "binomial": _count(math.comb),
    "permutations": _count(math.perm),
    "gcd": _count(math.gcd),
    "lcm": _count(math.lcm),
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "log": _log_exactly,
    "lg": _log_exactly,
}


def _power(base: Any, exponent: Any) -> Any:
    size = abs(exponent)
    if size > 1 and base and (mpmath.isinf(size) or size * abs(mpmath.log10(abs(base)) if abs(base) != 1 else 0) > MAX_LOG10):
        raise TooLarge("a large power")
    if not base and mpmath.re(exponent) < 0:
        raise NoValue("a division by zero")
    return mpmath.power(base, exponent)


def _periodic(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def compute(angle: Any) -> Any:
        if abs(angle) > mpmath.mpf(10) ** 100:
            raise TooLarge("a large angle")
        return function(angle)

    return compute


def _factorial(value: Any) -> Any:
    if abs(value) > 5000:
        raise TooLarge("a large factorial")
    return mpmath.factorial(value)


def _choose(total: Any, chosen: Any) -> Any:
    if max(abs(total), abs(chosen)) > 5000:
        raise TooLarge("large factorials")
    return mpmath.binomial(total, chosen)


NUMERIC: dict[str, Callable[..., Any]] = {
    "add": lambda *terms: mpmath.fsum(terms),
    "mul": lambda *factors: mpmath.fprod(factors),
    "div": lambda above, below: above / below,
    "neg": lambda value: -value,
    "pow": _power,
    "factorial": _factorial,
    "percent": lambda value: value / 100,
    "degrees": lambda value: value * mpmath.pi / 180,
}
NUMERIC_CALLS: dict[str, Callable[..., Any]] = {
    "sqrt": lambda value, degree=2: _power(value, 1 / mpmath.mpf(degree)) if degree != 2 else mpmath.sqrt(value),
    "cbrt": mpmath.cbrt,
    "ln": mpmath.log,
    "log": lambda value, base=10: mpmath.log(value) / mpmath.log(base),
    "lg": mpmath.log10,
    "exp": lambda value: _power(mpmath.e, value),
    "abs": abs,
    "floor": mpmath.floor,
    "ceil": mpmath.ceil,
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "binomial": _choose,
    **{name: _periodic(getattr(mpmath, name)) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
    **{name: _periodic(getattr(mpmath, name)) for name in ("sinh", "cosh", "tanh")},
}
