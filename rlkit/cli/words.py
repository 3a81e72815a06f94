"""The words of a command: its own keys among the overrides of the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.errors import UserError

LOOPBACK = "127.0.0.1"


def split_own_keys(words: Sequence[str], own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own keys, and all other words."""
    found = {key: value for key, equals, value in (word.partition("=") for word in words) if equals and key in own}
    return found, [word for word in words if word.partition("=")[0] not in found]


def split_model(arguments: Sequence[str], usage: str) -> tuple[str, list[str]]:
    """The run or model that a command is given, and the words key=value. Raises UserError where it is not exactly one."""
    names = [word for word in arguments if "=" not in word]
    if len(names) != 1:
        raise UserError(f"name one run or one model: {usage}")
    return names[0], [word for word in arguments if "=" in word]


def parse_count(text: str) -> int:
    """The value of n=. Raises UserError where it is no whole number of rows."""
    if not (text.isascii() and text.isdigit()) or int(text[:9]) < 1:
        raise UserError(f"n={text} is not valid: it must be a whole number of rows, at least 1")
    return int(text[:9])


def read_port(word: str) -> int:
    """Raises UserError for what is no port."""
    if not word.isdigit() or not 1 <= int(word) <= 65535:
        raise UserError(f"port={word} is not valid: it must be a whole number from 1 to 65535")
    return int(word)
