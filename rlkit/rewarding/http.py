"""Asking a server for a score: JSON there and back, tried again where that may help, not faster than allowed, never asked twice.

For async reward functions. Each request has a thread of its own, which ends with the deadline of the sample: none waits for a thread that
another one holds. Proxies and keys come from the environment only as far as the recipe's rewarding.env lists them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.rewarding.worker import UNTIL

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later
FIRST_PAUSE = 0.5  # seconds; doubled with each try, as RFC 9110 leaves to the client where no Retry-After is given
LONGEST_PAUSE = 30.0
GRACE_SECONDS = 0.5  # by which a request may outlive the sample's deadline: what is told is that, not the socket's own time-out
THREADS = "rlkit-request"

_remembered: dict[str, Any] = {}
_asking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # held by who asks; the next finds the answer, or asks where there is none
_next_turn: dict[str, float] = {}  # address -> when the next request may leave


class Refused(Exception):
    """The server did not give an answer that can be used."""


async def post(
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    tries: int = 5,
    seconds: float = 60.0,
    per_second: float = 0.0,
    cache: str = "",
) -> Any:
    """The JSON that `url` answers to `body`. Raises Refused where the last of `tries` fails or the request itself is wrong (4xx).

    seconds: for one try; this and `tries` hold as far as the reward's deadline for the sample leaves time. per_second: requests of this
    worker to this address, 0 for no limit. cache: a folder in which answers are kept over runs; within a run they always are.
    """
    asked = json.dumps([url, body], sort_keys=True, default=str)
    name = hashlib.sha256(asked.encode()).hexdigest()
    kept = Path(cache, f"{name}.json") if cache else None
    async with _asking[name]:
        if name not in _remembered and kept is not None and kept.is_file():
            _remembered[name] = json.loads(kept.read_text(encoding="utf-8"))
        if name not in _remembered:
            _remembered[name] = await _ask(url, json.dumps(body, default=str).encode(), headers or {}, tries, seconds, per_second)
            if kept is not None:
                _keep(kept, _remembered[name])
    return _remembered[name]


async def _ask(url: str, body: bytes, headers: Mapping[str, str], tries: int, seconds: float, per_second: float) -> Any:
    pause = FIRST_PAUSE
    for attempt in range(1, tries + 1):
        await _turn(url, per_second)
        try:
            return await _in_a_thread(url, body, headers, min(seconds, UNTIL.get() - time.monotonic() + GRACE_SECONDS))
        except urllib.error.HTTPError as error:
            told = error.read(300).decode(errors="replace").strip()
            trouble, wait = f"{url} answered {error.code}: {told}", error.headers.get("Retry-After")
            if error.code not in TRY_AGAIN:
                raise Refused(trouble) from None
        except (OSError, ValueError) as error:  # no connection, no answer in time, no JSON
            trouble, wait = f"{url}: {error}", None
        if attempt < tries:
            # spread, so that many workers do not come back at the same moment
            seconds_to_wait = float(wait) if wait and wait.isdigit() else pause * (0.5 + random.random() / 2)
            if time.monotonic() + seconds_to_wait >= UNTIL.get():
                raise Refused(f"{trouble} (tries: {attempt} of {tries}, the reward's deadline leaves no time for another)")
            await asyncio.sleep(seconds_to_wait)
            pause = min(2 * pause, LONGEST_PAUSE)
    raise Refused(f"{trouble} (tried {tries} times)")


async def _turn(url: str, per_second: float) -> None:
    if per_second > 0:
        now = time.monotonic()
        turn = max(now, _next_turn.get(url, now))
        _next_turn[url] = turn + 1 / per_second
        await asyncio.sleep(turn - now)


async def _in_a_thread(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()  # who awaits it may give up, the thread goes on

    def send() -> None:
        try:
            answer.set_result(_send(url, body, headers, seconds))
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            answer.set_exception(error)

    threading.Thread(target=send, name=THREADS, daemon=True).start()
    return await asyncio.wrap_future(answer)


def _send(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.loads(answer.read())


def _keep(file: Path, answer: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(file)  # whole or not at all, whoever else writes the same
