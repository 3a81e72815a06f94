"""Prints the output of commands, as text that is safe for a terminal or as one JSON document, and reads lines of input."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rlkit.report.console import Console, escape_control

WIDEST = 100  # columns of running text
LEAVE = ("/exit", "/quit")  # lines that end what reads them


def print_text(text: str) -> None:
    """Prints text with its control characters made visible. If the reader is gone (`| head`), it does nothing."""
    Console(0).note(text)


def print_document(document: Mapping[str, Any]) -> None:
    """Prints one JSON document, in ASCII. A number that JSON does not have is null, any other such value its text."""
    print_text(json.dumps(_replace_not_finite(document), indent=2, allow_nan=False, default=str).replace("\x7f", "\\u007f"))


def get_text_width() -> int:
    """Columns for running text on this terminal, 80 without one."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def read_lines() -> Iterator[str]:
    """The lines of a pipe, or those that somebody types."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  input() then edits lines and remembers them

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def print_aside(text: str) -> None:
    """A line beside the conversation, on stderr."""
    print(escape_control(text, sys.stderr.encoding or "utf-8"), file=sys.stderr, flush=True)


def _replace_not_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _replace_not_finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_not_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
