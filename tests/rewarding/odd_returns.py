"""Reward calls that return or raise what is no score or no error, by the name of what it is."""

from __future__ import annotations

import asyncio
import collections
import decimal
import fractions
from collections.abc import Callable
from importlib import import_module  # of numpy in a call: it would slow the start of every worker
from typing import Any

from rlkit.errors import UserError


class Text(str):
    """A text that is a number, too, and no plain text where it is asked for one."""

    def __float__(self) -> float:
        return 1.0

    def __str__(self) -> str:
        return self


class Wordless(UserError):
    def __str__(self) -> str:
        return Text("words \ud800 \x1b[2J")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no picture")

    __float__ = __len__ = __iter__ = __repr__  # type: ignore[assignment]


class OddMapping(collections.UserDict[str, Any]):
    def __contains__(self, key: object) -> bool:
        raise RuntimeError("no key")


class OddFloat(float):
    def __float__(self) -> float:
        return "1"  # type: ignore[return-value]


def _raise(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


RETURNING: dict[str, Callable[[], Any]] = {
    "complex": lambda: 1 + 0j,
    "numpy complex": lambda: import_module("numpy").complex128(1),
    "numpy text": lambda: import_module("numpy").array("1.5"),
    "numpy date": lambda: import_module("numpy").datetime64("2020-01-01"),
    "numpy object": lambda: import_module("numpy").array(1.0, dtype=object),
    "numpy whole": lambda: import_module("numpy").int8(1),
    "text subclass": lambda: Text("1"),
    "user string": lambda: collections.UserString("1"),
    "large": lambda: 1.01e100,
    "large integer": lambda: 10**5000,
    "large entry": lambda: {"score": 1.0, "e": 1e101, "f": 10**5000, "g": Text("1")},
    "decimal nan": lambda: decimal.Decimal("sNaN"),
    "fraction": lambda: fractions.Fraction(2, 2),
    "odd": Odd,
    "odd mapping": lambda: OddMapping(score=1.0),
    "odd float": lambda: OddFloat(1.0),
    "odd keys": lambda: {"score": 1.0, Text("a\ud800"): 2.0, "\x1b[2J": 3, "y" * 5000: 4, None: 5},
    "many entries": lambda: {"score": 1.0} | {str(n): n for n in range(100_000)},
    "generator": lambda: (1.0 for _ in range(1)),
    "class": lambda: float,
    "wordless": _raise(Wordless()),
    "mute": _raise(Mute()),
    "stop iteration": _raise(StopIteration(1.0)),
    "generator exit": _raise(GeneratorExit()),
    "cancelled": _raise(asyncio.CancelledError()),
    "group of errors": _raise(BaseExceptionGroup("several", [KeyboardInterrupt(), SystemExit(0)])),
}
