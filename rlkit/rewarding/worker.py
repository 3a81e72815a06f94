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
import traceback
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from time import monotonic, perf_counter, process_time  # by name: a function may replace those of the module
from typing import Any, NamedTuple
from zlib import crc32

from rlkit.errors import UserError
from rlkit.rewarding import processes
from rlkit.rewarding.calling import RewardFunction, load_function
from rlkit.rewarding.forms import CallLog, Item
from rlkit.rewarding.job import FunctionKind, LoadResult, UnitResult, WorkerLimits, WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind, to_plain_text
from rlkit.rewarding.restore import GrowthCheck, WorkerState
from rlkit.rewarding.scores import InvalidScore

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
    threads_before: frozenset[threading.Thread] = frozenset()  # the current call
    thread_errors: tuple[str, ...] = ()  # of threads that the current call started
    calls = 0  # that have ended
    intact: WorkerState | None = None  # None outside a worker: nothing is restored
    growth: GrowthCheck | None = None


class _Finished(NamedTuple):
    """A call that has ended: by what it returned or by what it raised."""

    samples: int
    seconds: float
    log: CallLog
    returned: Any = None
    error: BaseException | None = None
    late: bool = False


def init_worker(rewards: Sequence[WorkerReward], limits: WorkerLimits, supervisor: int) -> None:
    """Turn a fresh process into a worker. Called once, before any reward file is imported. supervisor: its process id."""
    confine_worker(limits.memory_gib, supervisor)
    _State.pid, _State.rewards = os.getpid(), rewards
    threading.excepthook = _record_thread_error


def confine_worker(memory_gib: float, supervisor: int) -> None:
    """Limit the memory of this fresh process, silence it, and let it end with its supervisor (process id)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends at once, even inside C code that never returns to the interpreter
    os.setsid()  # its descendants differ from the supervisor's own children by their session
    processes.die_with_parent(supervisor)
    _silence_output()
    _set_limit(resource.RLIMIT_CORE, 0)
    # DATA, not AS: it counts allocated memory, not mapped memory (libraries map many times what they use)
    _set_limit(resource.RLIMIT_DATA, int(memory_gib * 2**30))


def load_rewards() -> LoadResult:
    """Import all reward files."""
    try:
        if _State.functions is None:
            _State.functions = [_load_function(reward) for reward in _State.rewards]
            _State.intact, _State.growth = WorkerState(), GrowthCheck()
    except UserError as error:
        return LoadResult([], str(error), os.getpid())
    kinds = [FunctionKind(f.form.batch, f.is_async, f.settings, f.from_trainer) for f in _State.functions]
    return LoadResult(kinds, "", os.getpid())


def run_calls(index: int, calls: Sequence[Sequence[bytes]]) -> UnitResult:
    """Several calls, one after the other, until one leaves the worker in a state in which it must be replaced."""
    outcomes: list[Outcome] = []
    for payloads in calls:
        finished, made, intact = _run_call(index, payloads)
        _State.calls += 1
        if _State.calls > 1 and any(isinstance(call.error, MemoryError) for call in finished):
            return UnitResult(outcomes, True, "")  # earlier calls may have kept the memory: the next worker makes this call first
        outcomes += made
        growth = _State.growth.find_growth(_State.rewards[index].name) if _State.growth else ""
        if growth or not intact:
            return UnitResult(outcomes, True, growth)
    return UnitResult(outcomes, False, "")


def _run_call(index: int, payloads: Sequence[bytes]) -> tuple[list[_Finished], list[Outcome], bool]:
    """Call reward `index` with samples (pickled items): one, a group, or several for an async function. Never raises.

    Returns also whether the worker is as it was before.
    """
    _State.threads_before, _State.thread_errors = frozenset(threading.enumerate()), ()
    _extend_cpu_limit(_State.rewards[index].cpu_seconds * len(payloads))
    started, finished = perf_counter(), list[_Finished]()
    try:
        if _State.functions is None and (message := load_rewards().message):
            raise UserError(message)
        assert _State.functions is not None
        finished = _call_function(_State.functions[index], payloads)
        intact = _State.intact is None or _State.intact.restore()
        outcomes = _judge_calls(_State.functions[index], finished)
    except BaseException as error:  # noqa: BLE001 - a trace or signal function that the call left behind raises outside the call
        _ = _State.intact and _State.intact.restore()  # for what follows: the worker is replaced all the same
        outcomes, intact = [_to_failure(error, perf_counter() - started)] * len(payloads), False
    if os.getpid() != _State.pid:
        os._exit(0)  # a fork made by the function returned through it; there is one worker only
    waited = _join_new_threads()
    if _State.thread_errors:
        outcomes = [Outcome(OutcomeKind.ERROR, detail=_State.thread_errors[0], seconds=o.seconds) for o in outcomes]
    if waited:  # a part of the call: calls that take this long do not go together
        outcomes = [replace(outcome, seconds=outcome.seconds + waited) for outcome in outcomes]
    return finished, outcomes, intact


def _join_new_threads() -> float:
    """Wait a moment for threads that a call started, and return the seconds that it took; 0 where there are none."""
    started, new = monotonic(), set(threading.enumerate()) - _State.threads_before
    for thread in new:
        thread.join(max(0.0, started + THREAD_SECONDS - monotonic()))
    return monotonic() - started if new else 0.0


def run_without_worker(reward: WorkerReward, items: Sequence[Item]) -> list[Outcome]:
    """Call a reward in this process, without limits: it may print and start a debugger. Raises UserError if it cannot be imported."""
    function = _load_function(reward)
    payloads = [pickle.dumps(dict(item), protocol=pickle.HIGHEST_PROTOCOL) for item in items]
    return _judge_calls(function, _call_function(function, payloads))


def _call_function(function: RewardFunction, payloads: Sequence[bytes]) -> list[_Finished]:
    """The calls for these samples, each of which has ended in some way."""
    if function.is_async:
        if _State.loop is None:
            _State.loop = asyncio.new_event_loop()  # one for the life of the worker: clients made in the first call belong to it
        calls = [payloads] if function.form.batch else [[payload] for payload in payloads]
        return _State.loop.run_until_complete(_call_concurrently(function, calls))
    count, started = len(payloads), perf_counter()
    log = CallLog(count)
    try:
        items = [pickle.loads(payload) for payload in payloads]
        random.seed(_hash_payloads(payloads))  # a reward that draws random numbers draws the same ones for the same sample
        CALL_DEADLINE.set(monotonic() + function.reward.timeout * len(items))
        started = perf_counter()
        returned = function.call(items, log)
        return [_Finished(count, perf_counter() - started, log, returned)]  # no builtin function here: they may be gone
    except BaseException as error:  # noqa: BLE001 - SystemExit too: whatever a function raises is reported, and the worker goes on
        return [_Finished(count, perf_counter() - started, log, error=error)]


async def _call_concurrently(function: RewardFunction, calls: Sequence[Sequence[bytes]]) -> list[_Finished]:
    return await asyncio.gather(*(_call_async(function, payloads) for payloads in calls))


async def _call_async(function: RewardFunction, payloads: Sequence[bytes]) -> _Finished:
    log, started = CallLog(len(payloads)), perf_counter()
    timeout = function.reward.timeout * len(payloads)
    CALL_DEADLINE.set(monotonic() + timeout)  # of this call alone: each call is a task with its own context
    try:
        returned = await asyncio.wait_for(_await_function(function, payloads, log), timeout)
        return _Finished(len(payloads), perf_counter() - started, log, returned)
    except BaseException as error:  # noqa: BLE001 - as in _call_function(): the error of one sample must not fail the others
        seconds = perf_counter() - started
        late = isinstance(error, TimeoutError) and seconds >= timeout  # not one that the function itself raised earlier
        return _Finished(len(payloads), seconds, log, error=error, late=late)


async def _await_function(function: RewardFunction, payloads: Sequence[bytes], log: CallLog) -> Any:
    async def call() -> Any:
        return await function.call([pickle.loads(payload) for payload in payloads], log)

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


def _judge_calls(function: RewardFunction, finished: Sequence[_Finished]) -> list[Outcome]:
    return [outcome for call in finished for outcome in _judge_call(function, call)]


def _judge_call(function: RewardFunction, call: _Finished) -> list[Outcome]:
    """The outcomes of the samples of a call."""
    if call.late:
        detail = f"no answer within {function.reward.timeout * call.samples:g} s"
        return [Outcome(OutcomeKind.TIMEOUT, detail=detail, seconds=call.seconds)] * call.samples
    if call.error is not None:
        return [_to_failure(call.error, call.seconds)] * call.samples
    try:
        scores = function.parse(call.returned, call.log, call.samples)
    except BaseException as error:  # noqa: BLE001 - methods of what the function returned may raise anything
        return [_to_failure(error, call.seconds)] * call.samples
    return [
        Outcome(OutcomeKind.NOT_APPLICABLE if value is None else OutcomeKind.SCORE, value, "", call.seconds, metrics)
        for value, metrics in scores
    ]


def _to_failure(error: BaseException, seconds: float) -> Outcome:
    try:
        text = to_plain_text(_truncate(str.__str__(_describe_error(error))))
    except BaseException:  # noqa: BLE001 - methods of the error may raise anything
        text = "an error that cannot be described: its own methods raise"
    return Outcome(OutcomeKind.ERROR, detail=text, seconds=seconds)


def _describe_error(error: BaseException) -> str:
    if isinstance(error, (UserError, InvalidScore)):
        return str(error)
    # without frames of this package: the first one left is in the function
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(os.path.dirname(__file__))]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(type(error), error)])


def _load_function(reward: WorkerReward) -> RewardFunction:
    try:
        return load_function(reward)
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - a file that calls sys.exit while it is imported is a user error too
        lines = _to_failure(error, 0.0).detail.strip().splitlines()[-IMPORT_ERROR_LINES:]
        raise UserError(f"rewards.{reward.name}: {reward.path} cannot be imported:\n" + "\n".join(lines)) from None


def _record_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.thread in _State.threads_before:
        return  # of an earlier call: the current one has no part in it
    text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    _State.thread_errors += (to_plain_text(_truncate(f"raised in a thread: {text}")),)


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
    soft = int(process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
