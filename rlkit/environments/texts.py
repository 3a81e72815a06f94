"""From whatever the code of an environment returned to text that a chat template can write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlkit.environments.base import Message

ROLES = ("user", "tool", "system", "assistant")


def to_text(value: Any) -> str:
    """Exactly a str, without lone surrogates: a text as it is, bytes decoded, lists and objects as JSON, anything else as Python prints it.

    Raises what the methods of the value raise."""
    if isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, (bytes, bytearray)):
        text = bytes(value).decode(errors="replace")
    elif isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str.__str__(str(value))
    return text.encode(errors="replace").decode() if not text.isascii() else text


def cut_text(text: str, limit: int) -> str:
    """The first `limit` characters, and a line that the rest was cut, where there is more."""
    return text if len(text) <= limit else f"{text[:limit]}\n[cut: the first {limit:,} of {len(text):,} characters]"


def to_message(value: Any, limit: int) -> Message:
    """A message of an environment with its role and its text alone. Raises TypeError where it is none."""
    if not isinstance(value, Mapping) or "content" not in value:
        raise TypeError(f"a message is a mapping with role and content, not {type(value).__name__}")
    role = value.get("role")
    return {"role": role if role in ROLES else "user", "content": cut_text(to_text(value["content"]), limit)}
