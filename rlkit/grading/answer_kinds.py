"""The kinds of answers. A plain ParsedAnswer is a text; the others are more."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.grading.expressions import Expression


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer as it was read. text: the whole of it, normalised."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity(ParsedAnswer):
    """An expression; its unit and its modulus, where it has them."""

    node: Expression
    unit: str | None = None
    modulus: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled(ParsedAnswer):
    """A value with its left side, x of x = 5. named: the left side is a name, which may be absent. steps: sides between."""

    left: str
    value: ParsedAnswer
    named: bool
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restricted(ParsedAnswer):
    """A value and what its parameter runs through: k pi, k in Z. The domain may be absent, never different."""

    value: ParsedAnswer
    domain: str


@dataclass(frozen=True, slots=True)
class Collection(ParsedAnswer):
    """Several answers. kind: list, set, tuple, union, matrix, cases, ratio; of list, set, union and cases the order has no meaning."""

    kind: str
    items: tuple[ParsedAnswer, ...]


@dataclass(frozen=True, slots=True)
class Interval(ParsedAnswer):
    """The numbers between two bounds. closed: whether each bound belongs to it. name: of the variable, where it was an inequality."""

    bounds: tuple[ParsedAnswer, ParsedAnswer]
    closed: tuple[bool, bool]
    name: str | None = None
