"""A score from a server of one's own: it gets the sample as JSON and answers with {"score": number or null, ...}."""

from __future__ import annotations

from typing import Any

from rlkit.rewarding import http


async def remote(
    prompt: Any,
    completion: str,
    *,
    url: str,
    tries: int = 5,
    seconds: float = 60.0,
    per_second: float = 0.0,
    cache: str = "",
    **columns: Any,
) -> Any:
    """What `url` answers to {"prompt", "completion", and all columns of the row but those named like a setting}.

    The settings are those of rlkit.rewarding.http.post.
    """
    sample = {**columns, "prompt": prompt, "completion": completion}
    return await http.post(url, sample, tries=tries, seconds=seconds, per_second=per_second, cache=cache)
