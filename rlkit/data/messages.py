"""The messages of a chat as rows have them: {role, content} or sharegpt's {from, value}, content as text or in parts of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.data.rows import Row, RowFault, show

Message = dict[str, Any]  # role, content, and whatever else the chat template reads

ROLES = {  # what rows call a role -> what chat templates call it
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
}
PREFIX = "prefix"  # true in a last message of the assistant: it is continued


def normalise_messages(value: Sequence[Mapping[str, Any]], system: Any) -> list[Message]:
    """Messages with role and text; for sharegpt's, `system` is what the column of that name holds. Raises RowFault."""
    sharegpt = all("from" in message and "value" in message for message in value)
    messages = [_normalise_message({"role": m["from"], "content": m["value"]} if sharegpt else m) for m in value]
    if sharegpt and isinstance(system, str) and system and messages[0]["role"] == "user":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def strip_replies(messages: Sequence[Message]) -> list[Message]:
    """A conversation without the assistant's messages at its end, which the policy answers; one with `prefix: true` stays."""
    chat = list(messages)
    while chat and chat[-1]["role"] == "assistant" and not chat[-1].get(PREFIX):
        chat.pop()
    if not chat:
        raise RowFault(f"has only the assistant's messages: {show(list(messages))}")
    return chat


def read_tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The tool schemas in the column `tools`: a list of objects, or the same as JSON. Anything else is a column like any other."""
    found = row.get("tools")
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            return ()
    if not isinstance(found, list) or not all(isinstance(schema, Mapping) for schema in found):
        return ()
    return tuple(_drop_nulls(schema) for schema in found)


def _normalise_message(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or (content is None and not message.get("tool_calls")):
        raise RowFault(f"has messages without role and content: {show(dict(message))}")
    if role.strip().lower() not in ROLES:
        raise RowFault(f"has a message of the unknown role {show(role, 40)}; known are {', '.join(ROLES)}")
    if content is None:
        raise RowFault(f'has a message with tool calls and no content: {show(dict(message))}; write "" as its content')
    others = {key: part for key, part in message.items() if part is not None}
    return {**others, "role": ROLES[role.strip().lower()], "content": _read_text(content)}


def read_user_text(prompt: Any) -> str:
    """The text of a user in a prompt of any form; empty where there is none."""
    if isinstance(prompt, str):
        return prompt
    messages = [message for message in ([prompt] if isinstance(prompt, Mapping) else prompt or ()) if isinstance(message, Mapping)]
    own = [message for message in messages if ROLES.get(str(message.get("role", message.get("from"))).strip().lower()) == "user"]
    contents = [message.get("content", message.get("value")) for message in own]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [{"text": content}])]
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _read_text(content: Any) -> str:
    """Text, or the text of parts [{"type": "text", "text": ...}]."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    found = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") in ("text", None)]
    texts = [text for text in found if isinstance(text, str)]
    if not parts or len(texts) != len(parts):
        raise RowFault(f'has a message whose content is neither text nor a list of parts {{"type": "text", "text": ...}}: {show(content)}')
    return "".join(texts)


def _drop_nulls(value: Any) -> Any:
    """Without the keys that hold nothing: an Arrow table gives every object the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(part) for key, part in value.items() if part is not None}
    return [_drop_nulls(part) for part in value] if isinstance(value, list) else value
