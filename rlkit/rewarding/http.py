"""Asks a server for a score, for async reward functions: JSON over httpx, with tenacity's retries, a rate limit and a cache.

A request goes to the url of the recipe and to no other: a redirect is followed within its origin, where it keeps the method (307, 308).
Proxies and keys come from the environment, as far as the recipe's rewarding.env lists them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import httpx
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from rlkit.rewarding.worker import CALL_DEADLINE

RETRY_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504)  # may be gone a moment later
KEEPING_REDIRECTS = (307, 308)  # RFC 9110: the method and the body stay; a client may make a GET of a POST for the others
MAX_REDIRECTS = 5
PAUSES = wait_random_exponential(multiplier=0.5, min=0.25, max=30.0)  # seconds; random, so that workers do not come back together
NO_PROXY = ("all://localhost", "all://127.0.0.1", "all://[::1]")
ERROR_CHARACTERS = 300  # of an answer that is shown in a message

_answers: dict[str, Any] = {}  # by digest of the request
_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by digest: equal requests wait for the first one, then use its answer
_next_turn: dict[str, float] = {}  # address -> when the next request may be sent
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()  # its connections belong to a loop


class RequestFailed(Exception):
    """The server gave no usable answer."""


class _TryAgain(Exception):
    """This try failed in a way that may be gone a moment later. pause: seconds that the server asks for."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


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
            content = json.dumps(body, default=str).encode()
            _answers[digest] = await _request(
                url, content, {"Content-Type": "application/json", **(headers or {})}, tries, seconds, per_second
            )
            if file is not None:
                _write_cache(file, _answers[digest])
    return _answers[digest]


async def _request(url: str, content: bytes, headers: Mapping[str, str], tries: int, seconds: float, per_second: float) -> Any:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(_TryAgain),
        stop=stop_after_attempt(tries) | stop_before_delay(CALL_DEADLINE.get() - monotonic()),
        wait=_choose_pause,
    )
    try:
        async for attempt in retrying:
            with attempt:
                client = _get_client()
                await _wait_for_turn(url, per_second)
                return await _send(client, url, content, headers, seconds)
    except RetryError as error:
        made = error.last_attempt.attempt_number
        why = f"tried {tries} times" if made >= tries else f"tries: {made} of {tries}, the reward's timeout leaves no time for another"
        raise RequestFailed(f"{error.last_attempt.exception()} ({why})") from None


def _choose_pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.pause if isinstance(error, _TryAgain) else None
    return PAUSES(state) if asked is None else asked


async def _wait_for_turn(url: str, per_second: float) -> None:
    if per_second > 0:
        now = monotonic()
        turn = max(now, _next_turn.get(url, now))
        _next_turn[url] = turn + 1 / per_second
        await asyncio.sleep(turn - now)


async def _send(client: httpx.AsyncClient, url: str, content: bytes, headers: Mapping[str, str], seconds: float) -> Any:
    """One try. Raises _TryAgain or RequestFailed."""
    shown = hide_credentials(url)
    try:
        async with asyncio.timeout(seconds):
            answer = await _follow(client, httpx.URL(url), content, headers)
    except TimeoutError:
        raise _TryAgain(f"{shown}: no answer within {seconds:g} s") from None
    except httpx.TransportError as error:
        raise _TryAgain(f"{shown}: {_describe_cause(error)}") from None
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        raise RequestFailed(f"{shown}: {error}") from None
    if answer.status_code in RETRY_STATUSES:
        after = answer.headers.get("Retry-After", "")
        raise _TryAgain(_describe_answer(shown, answer), float(after) if after.isdigit() else None)
    if not answer.is_success:
        raise RequestFailed(_describe_answer(shown, answer))
    try:
        return answer.json()
    except ValueError as error:
        raise _TryAgain(f"{shown}: its answer is no JSON: {error}") from None


async def _follow(client: httpx.AsyncClient, url: httpx.URL, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
    """The answer of this address, or of those of the same origin to which it redirects."""
    for _ in range(MAX_REDIRECTS):
        answer = await client.post(url, content=content, headers=headers)
        if not answer.has_redirect_location:
            return answer
        target = url.join(answer.headers["Location"])
        where = hide_credentials(str(target))
        if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
            raise RequestFailed(
                f"{hide_credentials(str(url))} redirects to another server, {where}, which gets nothing; set its address as url"
            )
        if answer.status_code not in KEEPING_REDIRECTS:
            raise RequestFailed(
                f"{hide_credentials(str(url))} answered {answer.status_code}, which makes a GET of a POST; set url to {where}"
            )
        url = target
    raise RequestFailed(f"{hide_credentials(str(url))} redirects without end")


def _get_client() -> httpx.AsyncClient:
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        _clients[loop] = httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False, mounts=dict.fromkeys(NO_PROXY))
    return _clients[loop]


def hide_credentials(url: str) -> str:
    """An address without its user, password and query, for messages."""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    except (httpx.InvalidURL, TypeError, ValueError):
        return "the url"


def _describe_cause(error: BaseException) -> str:
    """What the system said, where it did: httpx says only that all attempts failed."""
    cause, below = error, error.__cause__ or error.__context__
    while below is not None:
        cause = below.exceptions[0] if isinstance(below, BaseExceptionGroup) else below
        below = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:  # below 0: of the resolver, with a text of its own
        return os.strerror(cause.errno)
    return str(cause) or str(error) or type(error).__name__


def _describe_answer(shown: str, answer: httpx.Response) -> str:
    return f"{shown} answered {answer.status_code}: {answer.text[:ERROR_CHARACTERS].strip()}"


def _write_cache(file: Path, answer: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(file)  # complete or not at all, even where another worker writes the same file
