"""Reads a quantity: an expression with its unit, currency, magnitude, percent sign or modulus."""

from __future__ import annotations

import re
from fractions import Fraction

from rlkit.grading.answer_kinds import Collection, ParsedAnswer, Quantity
from rlkit.grading.evaluation import find_symbols
from rlkit.grading.expressions import Expression, parse_expression, walk
from rlkit.grading.tokens import NotUnderstood
from rlkit.grading.units import CURRENCY, MAGNITUDE, MAGNITUDES, SAME_UNITS, read_unit

MODULUS = re.compile(r"\s*\(?\s*\\?(?:pmod|bmod|mod|text\s*\{\s*\(?mod)(?![a-zA-Z])\s*\}?\s*\{?\s*(\d+)\s*\}?\s*\)?\}?\s*\Z")


def read_quantity(text: str, whole: str) -> ParsedAnswer | None:
    if (modulus := MODULUS.search(text)) and modulus.start():
        found = read_quantity(text[: modulus.start()].strip(), whole)
        return Quantity(whole, found.node, found.unit, int(modulus[1])) if isinstance(found, Quantity) else None
    currency = CURRENCY.match(text)
    number = (currency[1] + text[currency.end() :]).strip() if currency else text
    if currency is None and re.fullmatch(r"-?[\d.]+\s*[€£¥$¢]", text):
        return _with_unit(text[:-1].strip(), text[-1], whole)
    if currency and number == text:
        return None
    unit = SAME_UNITS.get(currency[2] or "$", currency[2]) if currency else None
    alone = _with_unit(number, unit, whole)
    if isinstance(alone, Quantity) and not find_symbols(alone.node):
        return alone
    worded = _read_with_words(number, unit, whole)
    return worded if isinstance(worded, Quantity) and not find_symbols(worded.node) else alone or worded


def _with_unit(text: str, unit: str | None, whole: str) -> ParsedAnswer | None:
    try:
        node = parse_expression(text)
    except NotUnderstood:
        return None
    if any(part.kind == "pm" for part in walk(node)):
        return Collection(whole, "list", tuple(Quantity("", choose_sign(node, sign), unit) for sign in (1, -1)))
    if node.kind == "degrees" or (node.kind == "neg" and node.args[0].kind == "degrees"):
        inner = node.args[0]
        return Quantity(whole, inner if node.kind == "degrees" else Expression("neg", inner.args), "°")
    return Quantity(whole, node, unit)


def _read_with_words(text: str, unit: str | None, whole: str) -> ParsedAnswer | None:
    """A number and its magnitude or unit: 5 million, 12 cm, 72 clips."""
    match = re.match(r"(?P<number>.*?(?:[\d})!%]|\\pi))(?P<words>\s*(?:\\text\s*\{|\^\s*\{?\s*\\circ|[^\W\d_]|\().*)", text, re.DOTALL)
    starts = (
        []
        if match is None
        else [number.end() for number in re.finditer(r"(?:[\d})!%πe]|\\pi)(?=\s*(?:\\text|\^\s*\{?\s*\\circ|\(?[^\W\d_]))", text)]
    )
    for start in dict.fromkeys(starts[:8]):
        number, words = text[:start], text[start:]
        if magnitude := MAGNITUDE.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", words)):
            found = _with_unit(number, unit, whole)
            rest = magnitude[2].strip()
            counted = read_unit(f" {rest}") if rest else unit
            if isinstance(found, Quantity) and (counted or not rest):
                scale = Expression("number", (), Fraction(MAGNITUDES[magnitude[1].casefold()]))
                value = found.node.value if found.node.kind in ("number", "decimal", "mixed") else None
                node = Expression("number", (), value * scale.value) if value is not None else Expression("mul", (found.node, scale))
                return Quantity(whole, node, counted)
            continue
        if re.fullmatch(r"\s*(?:\\text\s*\{)?\s*(?:percent|pct)\s*\}?", words, re.IGNORECASE):
            return _with_unit(number + r"\%", unit, whole)
        if (named := read_unit(words)) is not None and (found := _with_unit(number, named, whole)):
            return found
    return None


def choose_sign(node: Expression, sign: int) -> Expression:
    r"""The expression with + or - for \pm, and the other for \mp."""
    if node.kind == "pm":
        inner = choose_sign(node.args[0], sign)
        return inner if node.value * sign > 0 else Expression("neg", (inner,))
    return Expression(node.kind, tuple(choose_sign(part, sign) for part in node.args), node.value)
