"""The code inside a worker process: its limits, and the call of a reward function that may do anything.

A worker inherits nothing from the trainer: no GPU, no signal handlers, no memory, and only the environment variables that the recipe
lists. It may be killed at any moment, so nothing here cleans up.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import random
import resource
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from typing import Any
from zlib import crc32

from rlkit.errors import UserError
from rlkit.rewarding import calling, processes
from rlkit.rewarding.calling import Item, RewardFunction, Score
from rlkit.rewarding.job import FunctionKind, WorkerLimits, WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.runtime.processes import list_descendants

MAX_CHILDREN = 16  # processes that calls may leave running in a worker: enough for a small pool
THREAD_SECONDS = 0.05  # how long to wait for a thread that the call started: it may be about to raise
DETAIL_CHARACTERS = 4000
IMPORT_ERROR_LINES = 6
# The time (time.monotonic) at which the current call must end: for code that waits, retries or starts programs on its behalf.
CALL_DEADLINE: ContextVar[float] = ContextVar("call_deadline", default=math.inf)


class _State:
    """The state of one worker process, set by init_worker() and load_rewards()."""

    pid = 0
    rewards: Sequence[WorkerReward] = ()
    functions: list[RewardFunction] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    thread_errors: tuple[str, ...] = ()
    import_children: frozenset[int] = frozenset()  # processes that the reward files started while they were imported


def init_worker(rewards: Sequence[WorkerReward], limits: WorkerLimits, supervisor: int) -> None:
    """Turn a fresh process into a worker. Called once, before any reward file is imported. supervisor: its process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends at once, even inside C code that never returns to the interpreter
    os.setsid()  # its descendants differ from the supervisor's own children by their session
    processes.die_with_parent(supervisor)
    _silence_output()
    _set_limit(resource.RLIMIT_CORE, 0)
    # DATA, not AS: it counts allocated memory, not mapped memory (libraries map many times what they use)
    _set_limit(resource.RLIMIT_DATA, int(limits.memory_gib * 2**30))
    _State.pid, _State.rewards = os.getpid(), rewards
    threading.excepthook = _record_thread_error


def load_rewards() -> tuple[list[FunctionKind], str]:
    """Import all reward files. Returns the kind of each function, or a message for the user."""
    try:
        if _State.functions is None:
            _State.functions = [_load_function(reward) for reward in _State.rewards]
            _State.import_children = frozenset(list_descendants(os.getpid()))
    except UserError as error:
        return [], str(error)
    return [FunctionKind(function.batch, function.is_async, function.settings) for function in _State.functions], ""


def run_calls(index: int, calls: Sequence[Sequence[bytes]]) -> list[Outcome]:
    """Several calls, one after the other. Returns their outcomes in one list."""
    return [outcome for payloads in calls for outcome in run_call(index, payloads)]


def run_call(index: int, payloads: Sequence[bytes]) -> list[Outcome]:
    """Call reward `index` with samples (pickled items): one, a group, or several for an async function. Never raises."""
    threads_before = set(threading.enumerate())
    _State.thread_errors = ()
    _extend_cpu_limit(_State.rewards[index].cpu_seconds * len(payloads))
    started = time.perf_counter()
    try:
        if _State.functions is None and (message := load_rewards()[1]):
            raise UserError(message)
        assert _State.functions is not None
        outcomes = _call_function(_State.functions[index], payloads)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: whatever a function raises is reported, and the worker goes on
        outcomes = [_to_failure(error, started)] * len(payloads)
    if os.getpid() != _State.pid:
        os._exit(0)  # a fork made by the function returned through it; there is one worker only
    deadline = time.monotonic() + THREAD_SECONDS
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(max(0.0, deadline - time.monotonic()))
    if _State.thread_errors:
        outcomes = [Outcome(OutcomeKind.ERROR, detail=_State.thread_errors[0], seconds=o.seconds) for o in outcomes]
    _kill_excess_children()
    return outcomes


def run_without_worker(reward: WorkerReward, items: Sequence[Item]) -> list[Outcome]:
    """Call a reward in this process, without limits: it may print and start a debugger. Raises UserError if it cannot be imported."""
    function = _load_function(reward)
    payloads = [pickle.dumps(dict(item), protocol=pickle.HIGHEST_PROTOCOL) for item in items]
    started = time.perf_counter()
    try:
        return _call_function(function, payloads)
    except BaseException as error:  # noqa: BLE001 - as in run_call()
        return [_to_failure(error, started)] * len(items)


def _call_function(function: RewardFunction, payloads: Sequence[bytes]) -> list[Outcome]:
    if function.is_async:
        if _State.loop is None:
            _State.loop = asyncio.new_event_loop()  # one for the life of the worker: clients made in the first call belong to it
        calls = [payloads] if function.batch else [[payload] for payload in payloads]
        return _State.loop.run_until_complete(_call_concurrently(function, calls))
    items = [pickle.loads(payload) for payload in payloads]
    random.seed(_hash_payloads(payloads))  # a reward that draws random numbers draws the same ones for the same sample
    started = time.perf_counter()
    CALL_DEADLINE.set(time.monotonic() + function.reward.timeout * len(items))
    scores = calling.parse_scores(function, function.call(items), len(items))
    return _to_outcomes(scores, started)


async def _call_concurrently(function: RewardFunction, calls: Sequence[Sequence[bytes]]) -> list[Outcome]:
    results = await asyncio.gather(*(_call_async(function, payloads) for payloads in calls))
    return [outcome for outcomes in results for outcome in outcomes]


async def _call_async(function: RewardFunction, payloads: Sequence[bytes]) -> list[Outcome]:
    started = time.perf_counter()
    timeout = function.reward.timeout * len(payloads)
    CALL_DEADLINE.set(time.monotonic() + timeout)  # of this call alone: each call is a task with its own context
    try:
        returned = await asyncio.wait_for(_await_function(function, payloads), timeout)
        return _to_outcomes(calling.parse_scores(function, returned, len(payloads)), started)
    except BaseException as error:  # noqa: BLE001 - as in run_call(): the error of one sample must not fail the others
        seconds = time.perf_counter() - started
        if isinstance(error, TimeoutError) and seconds >= timeout:  # not one that the function itself raised earlier
            return [Outcome(OutcomeKind.TIMEOUT, detail=f"no answer within {timeout:g} s", seconds=seconds)] * len(payloads)
        return [_to_failure(error, started)] * len(payloads)


async def _await_function(function: RewardFunction, payloads: Sequence[bytes]) -> Any:
    async def call() -> Any:
        return await function.call([pickle.loads(payload) for payload in payloads])

    return await _isolate_random(call(), _hash_payloads(payloads))


@types.coroutine
def _isolate_random(call: Coroutine[Any, Any, Any], seed: int) -> Generator[Any, Any, Any]:
    """Await `call` with its own `random` state: saved when the call waits, restored when it continues, whatever others drew meanwhile."""
    own = random.Random(seed).getstate()
    resume: Callable[[Any], Any] = call.send
    value: Any = None
    while True:
        random.setstate(own)
        try:
            awaited = resume(value)
        except StopIteration as end:
            return end.value
        own = random.getstate()
        try:
            resume, value = call.send, (yield awaited)
        except BaseException as error:  # noqa: BLE001 - the timeout, or an error of what it waited for: the call handles it
            resume, value = call.throw, error


def _hash_payloads(payloads: Sequence[bytes]) -> int:
    return crc32(b"".join(payloads))


def _to_outcomes(scores: list[Score], started: float) -> list[Outcome]:
    seconds = time.perf_counter() - started
    return [
        Outcome(OutcomeKind.NOT_APPLICABLE if value is None else OutcomeKind.SCORE, value, "", seconds, metrics)
        for value, metrics in scores
    ]


def _to_failure(error: BaseException, started: float) -> Outcome:
    seconds = time.perf_counter() - started
    if isinstance(error, (UserError, calling.InvalidScore)):
        return Outcome(OutcomeKind.ERROR, detail=str(error), seconds=seconds)
    # without frames of this package: the first one left is in the function
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(os.path.dirname(__file__))]
    text = "".join([*traceback.format_list(frames), *traceback.format_exception_only(type(error), error)])
    return Outcome(OutcomeKind.ERROR, detail=_truncate(text), seconds=seconds)


def _load_function(reward: WorkerReward) -> RewardFunction:
    try:
        return calling.load_function(reward)
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - a file that calls sys.exit while it is imported is a user error too
        lines = _to_failure(error, 0.0).detail.strip().splitlines()[-IMPORT_ERROR_LINES:]
        raise UserError(f"rewards.{reward.name}: {reward.path} cannot be imported:\n" + "\n".join(lines)) from None


def _kill_excess_children() -> None:
    if not processes.has_children():
        return
    left = [pid for pid in list_descendants(_State.pid) if pid not in _State.import_children]
    if len(left) > MAX_CHILDREN:
        processes.kill(left)
        processes.reap(left)


def _record_thread_error(args: threading.ExceptHookArgs) -> None:
    text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    _State.thread_errors += (_truncate(f"raised in a thread: {text}"),)


def _truncate(text: str) -> str:
    half = DETAIL_CHARACTERS // 2
    return text if len(text) <= DETAIL_CHARACTERS else f"{text[:half]}\n ...\n{text[-half:]}"


def _silence_output() -> None:
    """Discard what functions print: megabytes of it would hide the lines of the run (`rlkit reward retry` shows it)."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _set_limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _extend_cpu_limit(seconds: float) -> None:
    """Allow this call `seconds` of CPU time; after that the kernel ends the process (SIGXCPU)."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
