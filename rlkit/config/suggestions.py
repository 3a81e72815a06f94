"""What a misspelt word of a recipe may have meant."""

from __future__ import annotations

import difflib
from typing import Any


def suggest(word: str, known: Any, ask: str = "valid") -> str:
    """' (did you mean ...?)' where a known name is similar, else the valid names."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {', '.join(close)}?)"
    return f"; {ask}: {', '.join(sorted(names))}" if names else ""
