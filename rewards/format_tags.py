"""Is the completion made of the wanted tags, each once and in order, with something in each and nothing around them?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def format_tags(completion: str, *, tags: Sequence[str] = ("think", "answer"), opened: bool = False, **columns: Any) -> float:
    """1.0 for `<think>...</think> <answer>...</answer>`, else 0.0. opened: the first tag stands at the end of the prompt already."""
    text = f"<{tags[0]}>{completion}" if opened else completion
    once = all(text.count(f"<{tag}>") == 1 and text.count(f"</{tag}>") == 1 for tag in tags)
    pattern = r"\s*".join(rf"<{re.escape(tag)}>\s*\S.*?</{re.escape(tag)}>" for tag in tags)
    return float(once and re.fullmatch(rf"\s*{pattern}\s*", text, re.DOTALL) is not None)
