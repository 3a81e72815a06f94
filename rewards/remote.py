"""A score from your own server: it gets the sample as JSON and answers with {"score": number or null, ...}."""

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
    """The answer of `url` to {"prompt", "completion", and all columns of the row except those with the name of a setting}.

    The settings are those of rlkit.rewarding.http.post.
    """
    sample = {**columns, "prompt": prompt, "completion": completion}
    return await http.post(url, sample, tries=tries, seconds=seconds, per_second=per_second, cache=cache)
