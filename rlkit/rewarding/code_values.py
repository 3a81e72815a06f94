"""Compares what code printed or returned with what is expected, outside the process of the code. Nothing in it trusts what it reads.

Text, line by line: a token written as an integer must be the same text; one with a point or an exponent is right within 1e-6, relative or
absolute. Values come as JSON of their kinds (code_program.py), and are compared by Python's own equality (asserts), or by a table (calls):

    bool is not int; int equals float; a float is right within 1e-6; tuple equals list; str exact; a key 1 equals the key "1" of JSON
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

TOLERANCE = 1e-6
INTEGER = re.compile(r"[+-]?\d+")
DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,6})?")
LONGEST_NUMBER = 400  # characters; longer ones are texts
MORE, SLACK = 20, 100_000  # characters: what is longer than so many times the expected, and this, is not even read
LONGEST_PAIR = 200_000  # characters of two values that the process itself compares; longer ones must be the same text
NUMBERS = (bool, int, float, complex, Decimal, Fraction)


class Opaque:
    """An object of a class that is not Python's own: it equals nothing."""


def compare_output(printed: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether a program printed what is expected. Blank lines at both ends and blanks at the ends of lines do not matter; those between
    numbers neither, unless the expected lines are indented differently, as in a drawing."""
    if len(printed) > MORE * len(expected) + SLACK:
        return False
    given, wanted = _split_lines(printed), _split_lines(expected)
    if given == wanted:
        return True
    drawn = len({len(line) - len(line.lstrip()) for line in wanted if line}) > 1
    return len(given) == len(wanted) and all(_compare_lines(*pair, tolerance, drawn) for pair in zip(given, wanted, strict=True))


def _split_lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    return lines[next((number for number, line in enumerate(lines) if line), len(lines)) :]


def _compare_lines(given: str, wanted: str, tolerance: float | None, drawn: bool) -> bool:
    if given == wanted:
        return True
    given_tokens, wanted_tokens = given.split(), wanted.split()
    exact_blanks = drawn or not all(map(_is_number, wanted_tokens))
    if exact_blanks and re.split(r"\S+", given) != re.split(r"\S+", wanted):
        return False
    return len(given_tokens) == len(wanted_tokens) and all(
        _compare_tokens(*pair, tolerance) for pair in zip(given_tokens, wanted_tokens, strict=True)
    )


def _is_number(token: str) -> bool:
    return len(token) <= LONGEST_NUMBER and DECIMAL.fullmatch(token) is not None


def _compare_tokens(given: str, wanted: str, tolerance: float | None) -> bool:
    if given == wanted:
        return True
    if not _is_number(given) or not _is_number(wanted):
        return False
    exact = INTEGER.fullmatch(wanted) and (tolerance is None or INTEGER.fullmatch(given))
    return not exact and is_near(float(given), float(wanted), tolerance)


def is_near(given: float, wanted: float, tolerance: float | None = None) -> bool:
    bound = TOLERANCE if tolerance is None else tolerance
    return given == wanted or (math.isfinite(given) and math.isfinite(wanted) and abs(given - wanted) <= bound * max(1.0, abs(wanted)))


def read_records(stdout: str, word: str, expected: Sequence[Any]) -> list[list[Any]] | None:
    """The records of a program that came to its end; None for one that did not, or wrote something else, or much more than expected."""
    parts = stdout.split(word)[1::2]
    if max(map(len, parts), default=0) > MORE * max((len(repr(value)) for value in expected), default=0) + SLACK:
        return None
    try:
        records = [json.loads(part) for part in parts]
    except (ValueError, RecursionError):
        return None
    return records[:-1] if records and records[-1] == ["end"] and all(isinstance(record, list) for record in records) else None


def equals_in_python(value: Any, expected: Any) -> bool:
    """Whether an encoded value equals a plain one by Python's ==."""
    return _equals(value, expected, table=False, tolerance=None)


def equals_by_table(value: Any, expected: Any, tolerance: float | None = None) -> bool:
    """The same by the table of this module."""
    return _equals(value, expected, table=True, tolerance=tolerance)


def equals_each_other(value: Any, other: Any) -> bool:
    """Whether two encoded values are equal by Python's ==."""
    texts = json.dumps(value), json.dumps(other)
    if '["o"' in texts[0] or '["o"' in texts[1]:
        return False
    return texts[0] == texts[1] or (sum(map(len, texts)) <= LONGEST_PAIR and equals_in_python(value, decode_value(other)))


def _equals(value: Any, expected: Any, table: bool, tolerance: float | None) -> bool:
    kind, *content = value
    if isinstance(expected, NUMBERS):
        return kind in ("b", "i", "f", "c", "D", "F") and _equals_number(decode_value(value), expected, table, tolerance)
    if isinstance(expected, (list, tuple)):
        kinds = "lt" if table else "l" if isinstance(expected, list) else "t"
        return (
            kind in kinds
            and len(content[0]) == len(expected)
            and all(_equals(*pair, table, tolerance) for pair in zip(content[0], expected, strict=True))
        )
    if isinstance(expected, (set, frozenset)):
        return kind == "S" and len(content[0]) == len(expected) and {decode_value(item) for item in content[0]} == expected
    if isinstance(expected, Mapping):
        return kind == "d" and len(content[0]) == len(expected) and _equals_dict(content[0], expected, table, tolerance)
    return kind in ("n", "s", "y") and bool(decode_value(value) == expected)


def _equals_number(value: Any, expected: Any, table: bool, tolerance: float | None) -> bool:
    if not table:
        return bool(value == expected)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    near = isinstance(expected, float) or (tolerance is not None and isinstance(value, float))
    return value == expected or (near and isinstance(value, (int, float)) and _is_near_value(value, expected, tolerance))


def _is_near_value(value: float, expected: float, tolerance: float | None) -> bool:
    try:
        return (value != value and expected != expected) or is_near(float(value), float(expected), tolerance)
    except OverflowError:  # an integer beyond every float
        return False


def _equals_dict(pairs: list[Any], expected: Mapping[Any, Any], table: bool, tolerance: float | None) -> bool:
    found = {decode_value(key): item for key, item in pairs}
    if table:
        found = {str(key) if type(key) is int and key not in expected else key: item for key, item in found.items()}
    return found.keys() == expected.keys() and all(_equals(found[key], expected[key], table, tolerance) for key in expected)


def decode_value(value: Any) -> Any:
    """The plain value of an encoded one. Raises ValueError, TypeError, KeyError or the like for what is none."""
    kind, *content = value
    return _READERS[kind](*content)


_READERS: dict[str, Callable[..., Any]] = {
    "n": lambda: None,
    "b": bool,
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "s": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "y": bytes.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "D": Decimal,
    "F": lambda top, bottom: Fraction(int(top, 16), int(bottom, 16)),
    "l": lambda items: [decode_value(item) for item in items],
    "t": lambda items: tuple(decode_value(item) for item in items),
    "S": lambda items: {decode_value(item) for item in items},
    "d": lambda pairs: {decode_value(key): decode_value(item) for key, item in pairs},
    "o": lambda truth: Opaque(),
}


def get_truth(value: Any) -> bool:
    """Whether Python takes an encoded value as true."""
    return value[1] == 1 if value[0] == "o" else bool(decode_value(value))
