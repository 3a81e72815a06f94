"""Asks a server for a score, for async reward functions: JSON requests with retries, a rate limit and a cache.

Each request has its own thread, which ends at the timeout of its sample, so no request waits for a thread that another one holds. Proxies
and keys come from the environment, as far as the recipe's rewarding.env lists them.
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

from rlkit.rewarding.worker import CALL_DEADLINE

RETRY_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504)  # may be gone a moment later
FIRST_PAUSE = 0.5  # seconds; doubled with each try: RFC 9110 leaves it to the client where there is no Retry-After
LONGEST_PAUSE = 30.0
GRACE_SECONDS = 0.5  # a request may run this long after the sample's timeout, so that the outcome is that timeout and not the socket's
THREAD_NAME = "rlkit-request"
ERROR_BYTES = 300  # of an answer that is shown in a message

_answers: dict[str, Any] = {}  # by digest of the request
_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by digest: equal requests wait for the first one, then use its answer
_next_turn: dict[str, float] = {}  # address -> when the next request may be sent


class RequestFailed(Exception):
    """The server gave no usable answer."""


async def post(
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    tries: int = 5,
    seconds: float = 60.0,
    per_second: float = 0.0,
    cache: str = "",
) -> Any:
    """The JSON answer of `url` to `body`. Raises RequestFailed where the last of `tries` fails or the request is wrong (status 4xx).

    seconds: timeout of one try; the reward's timeout for the sample bounds all tries together. per_second: requests of this worker to
    this address, 0 for no limit. cache: a folder that keeps answers for later runs; within a run they are always kept.
    """
    request = json.dumps([url, body], sort_keys=True, default=str)
    digest = hashlib.sha256(request.encode()).hexdigest()
    file = Path(cache, f"{digest}.json") if cache else None
    async with _locks[digest]:
        if digest not in _answers and file is not None and file.is_file():
            _answers[digest] = json.loads(file.read_text(encoding="utf-8"))
        if digest not in _answers:
            _answers[digest] = await _request(url, json.dumps(body, default=str).encode(), headers or {}, tries, seconds, per_second)
            if file is not None:
                _write_cache(file, _answers[digest])
    return _answers[digest]


async def _request(url: str, body: bytes, headers: Mapping[str, str], tries: int, seconds: float, per_second: float) -> Any:
    pause = FIRST_PAUSE
    for attempt in range(1, tries + 1):
        await _wait_for_turn(url, per_second)
        try:
            return await _send_in_thread(url, body, headers, min(seconds, CALL_DEADLINE.get() - time.monotonic() + GRACE_SECONDS))
        except urllib.error.HTTPError as error:
            answer = error.read(ERROR_BYTES).decode(errors="replace").strip()
            reason, retry_after = f"{url} answered {error.code}: {answer}", error.headers.get("Retry-After")
            if error.code not in RETRY_STATUSES:
                raise RequestFailed(reason) from None
        except (OSError, ValueError) as error:  # no connection, no answer in time, no JSON
            reason, retry_after = f"{url}: {error}", None
        if attempt < tries:
            # random, so that many workers do not come back at the same moment
            wait = float(retry_after) if retry_after and retry_after.isdigit() else pause * (0.5 + random.random() / 2)
            if time.monotonic() + wait >= CALL_DEADLINE.get():
                raise RequestFailed(f"{reason} (tries: {attempt} of {tries}, the reward's timeout leaves no time for another)")
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
    raise RequestFailed(f"{reason} (tried {tries} times)")


async def _wait_for_turn(url: str, per_second: float) -> None:
    if per_second > 0:
        now = time.monotonic()
        turn = max(now, _next_turn.get(url, now))
        _next_turn[url] = turn + 1 / per_second
        await asyncio.sleep(turn - now)


async def _send_in_thread(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # the caller may stop waiting; the thread continues

    def send() -> None:
        try:
            future.set_result(_send(url, body, headers, seconds))
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)

    threading.Thread(target=send, name=THREAD_NAME, daemon=True).start()
    return await asyncio.wrap_future(future)


def _send(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return json.loads(answer.read())


def _write_cache(file: Path, answer: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(file)  # complete or not at all, even where another worker writes the same file
