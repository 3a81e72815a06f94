"""Whether the completion consists of the given tags: each once, in order, none empty, and no text around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def format_tags(completion: str, *, tags: Sequence[str] = ("think", "answer"), opened: bool = False, **columns: Any) -> float:
    """1.0 for `<think>...</think> <answer>...</answer>`, else 0.0. opened: the prompt already ends with the first tag."""
    text = f"<{tags[0]}>{completion}" if opened else completion
    once = all(text.count(f"<{tag}>") == 1 and text.count(f"</{tag}>") == 1 for tag in tags)
    pattern = r"\s*".join(rf"<{re.escape(tag)}>\s*\S.*?</{re.escape(tag)}>" for tag in tags)
    return float(once and re.fullmatch(rf"\s*{pattern}\s*", text, re.DOTALL) is not None)
