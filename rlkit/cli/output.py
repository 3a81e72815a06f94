"""What commands print: text that is safe for a terminal, whoever wrote it, or one JSON document."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from typing import Any

from rlkit.report.console import Console

WIDEST = 100  # columns of running text


def print_text(text: str) -> None:
    """Prints text with its control characters made visible. If the reader is gone (`| head`), it does nothing."""
    Console(0).note(text)


def print_document(document: Mapping[str, Any]) -> None:
    """Prints one JSON document, in ASCII. A number that JSON does not have is null, any other such value its text."""
    print_text(json.dumps(_replace_not_finite(document), indent=2, allow_nan=False, default=str).replace("\x7f", "\\u007f"))


def get_text_width() -> int:
    """Columns for running text on this terminal, 80 without one."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def _replace_not_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _replace_not_finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_not_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
