"""What runs inside a worker process: its limits, and the call of a reward function with whatever that may do.

A worker inherits nothing of the trainer: no GPU, no signal handlers, no memory, of the environment only what the recipe lists. It may be
killed at any moment; nothing here cleans up.
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
from rlkit.rewarding.calling import Reward, Score
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.spec import Kind, RewardSettings, RewardSpec

MAX_CHILDREN = 16  # processes that calls may leave running in a worker: a small pool of their own, but no flood
THREAD_SECONDS = 0.05  # a thread that the call started and that is about to raise is given this long to do so
DETAIL_CHARACTERS = 4000
# When (time.monotonic) the deadline of the async call that is under way ends: for what waits or tries again on its behalf.
UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)


class _State:
    """What one worker process knows; filled by start() and load()."""

    pid = 0
    specs: Sequence[RewardSpec] = ()
    settings = RewardSettings()
    rewards: list[Reward] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    thread_errors: tuple[str, ...] = ()
    imported_children: frozenset[int] = frozenset()  # processes that the reward files started while they were imported


def start(specs: Sequence[RewardSpec], settings: RewardSettings, supervisor: int) -> None:
    """Turn a fresh process into a worker. Called once, before any reward file is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # dies at once, even inside C code that never returns to the interpreter
    os.setsid()  # its descendants can be told from the supervisor's own children by their session
    processes.die_with_parent(supervisor)
    _be_quiet()
    _limit(resource.RLIMIT_CORE, 0)
    # DATA, not AS: it counts what is allocated, not what is merely mapped (libraries map many times what they use)
    _limit(resource.RLIMIT_DATA, int(settings.memory_gib * 2**30))
    _State.pid, _State.specs, _State.settings = os.getpid(), specs, settings
    threading.excepthook = _note_thread_error


def load() -> tuple[list[Kind], str]:
    """Import all reward files. Returns the kind of each, or what the user has to mend."""
    try:
        if _State.rewards is None:
            _State.rewards = [_load(spec) for spec in _State.specs]
            _State.imported_children = frozenset(processes.descendants(os.getpid()))
    except UserError as error:
        return [], str(error)
    return [Kind(reward.batch, reward.is_async, reward.settings) for reward in _State.rewards], ""


def run_each(index: int, calls: Sequence[Sequence[bytes]]) -> list[Outcome]:
    """Several calls, one after the other; their outcomes in one list."""
    return [outcome for payloads in calls for outcome in run(index, payloads)]


def run(index: int, payloads: Sequence[bytes]) -> list[Outcome]:
    """Ask reward `index` about samples (pickled items): one, a group, or several for an async function. Never raises."""
    before = set(threading.enumerate())
    _State.thread_errors = ()
    _grant_cpu(index, len(payloads))
    started = time.perf_counter()
    try:
        if _State.rewards is None and (trouble := load()[1]):
            raise UserError(trouble)
        assert _State.rewards is not None
        outcomes = _ask(_State.rewards[index], payloads)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: whatever a function does is told, not obeyed
        outcomes = [_failure(error, started)] * len(payloads)
    if os.getpid() != _State.pid:
        os._exit(0)  # a fork made by the function came back through it; there is one worker only
    until = time.monotonic() + THREAD_SECONDS
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, until - time.monotonic()))
    if _State.thread_errors:
        outcomes = [Outcome(OutcomeKind.ERROR, detail=_State.thread_errors[0], seconds=o.seconds) for o in outcomes]
    _end_flood()
    return outcomes


def run_here(spec: RewardSpec, settings: RewardSettings, items: Sequence[calling.Item]) -> list[Outcome]:
    """Ask a reward in this very process, without limits, with its prints and its debugger. Raises UserError if it cannot be imported."""
    _State.pid, _State.settings = os.getpid(), settings
    reward = _load(spec)
    payloads = [pickle.dumps(dict(item), protocol=pickle.HIGHEST_PROTOCOL) for item in items]
    started = time.perf_counter()
    try:
        return _ask(reward, payloads)
    except BaseException as error:  # noqa: BLE001 - as in run()
        return [_failure(error, started)] * len(items)


def _ask(reward: Reward, payloads: Sequence[bytes]) -> list[Outcome]:
    if reward.is_async:
        if _State.loop is None:
            _State.loop = asyncio.new_event_loop()  # one for the worker's life: clients made at the first call belong to it
        calls = [payloads] if reward.batch else [[payload] for payload in payloads]
        return _State.loop.run_until_complete(_ask_together(reward, calls))
    items = [pickle.loads(payload) for payload in payloads]
    random.seed(_seed(payloads))  # a reward that draws numbers draws the same ones for the same sample
    started = time.perf_counter()
    scores = calling.read_scores(reward, reward.call(items), len(items))
    return _scored(scores, started)


async def _ask_together(reward: Reward, calls: Sequence[Sequence[bytes]]) -> list[Outcome]:
    answers = await asyncio.gather(*(_ask_one(reward, payloads) for payloads in calls))
    return [outcome for answer in answers for outcome in answer]


async def _ask_one(reward: Reward, payloads: Sequence[bytes]) -> list[Outcome]:
    started = time.perf_counter()
    deadline = deadline_of(reward.spec, _State.settings) * len(payloads)
    UNTIL.set(time.monotonic() + deadline)  # of this call alone: each is a task with a context of its own
    try:
        returned = await asyncio.wait_for(_call(reward, payloads), deadline)
        return _scored(calling.read_scores(reward, returned, len(payloads)), started)
    except BaseException as error:  # noqa: BLE001 - as in run(): one sample's fault must not become its neighbours'
        seconds = time.perf_counter() - started
        if isinstance(error, TimeoutError) and seconds >= deadline:  # not one that the function itself raised earlier
            return [Outcome(OutcomeKind.TIMEOUT, detail=f"no answer within {deadline:g} s", seconds=seconds)] * len(payloads)
        return [_failure(error, started)] * len(payloads)


async def _call(reward: Reward, payloads: Sequence[bytes]) -> Any:
    async def called() -> Any:
        return await reward.call([pickle.loads(payload) for payload in payloads])

    return await _drawing_alone(called(), _seed(payloads))


@types.coroutine
def _drawing_alone(call: Coroutine[Any, Any, Any], seed: int) -> Generator[Any, Any, Any]:
    """Await `call` with a `random` state of its own: taken away whenever it waits, given back when it goes on, whoever drew meanwhile."""
    own = random.Random(seed).getstate()
    resume: Callable[[Any], Any] = call.send
    answer: Any = None
    while True:
        random.setstate(own)
        try:
            waits_for = resume(answer)
        except StopIteration as end:
            return end.value
        own = random.getstate()
        try:
            resume, answer = call.send, (yield waits_for)
        except BaseException as error:  # noqa: BLE001 - the deadline's, or what it waited for: the call's to handle
            resume, answer = call.throw, error


def _seed(payloads: Sequence[bytes]) -> int:
    return crc32(b"".join(payloads))


def deadline_of(spec: RewardSpec, settings: RewardSettings) -> float:
    """Seconds that one sample may take."""
    return settings.deadline if spec.deadline is None else spec.deadline


def _scored(scores: list[Score], started: float) -> list[Outcome]:
    seconds = time.perf_counter() - started
    return [
        Outcome(OutcomeKind.NOT_APPLICABLE if value is None else OutcomeKind.SCORE, value, "", seconds, metrics)
        for value, metrics in scores
    ]


def _failure(error: BaseException, started: float) -> Outcome:
    seconds = time.perf_counter() - started
    if isinstance(error, (UserError, calling.BadScore)):
        return Outcome(OutcomeKind.ERROR, detail=str(error), seconds=seconds)
    # without our own frames: the first one left is the function's
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(os.path.dirname(__file__))]
    told = "".join([*traceback.format_list(frames), *traceback.format_exception_only(type(error), error)])
    return Outcome(OutcomeKind.ERROR, detail=_shorten(told), seconds=seconds)


def _load(spec: RewardSpec) -> Reward:
    try:
        return calling.load(spec)
    except UserError:
        raise
    except BaseException as error:  # noqa: BLE001 - a file that calls sys.exit while it is imported is the user's mistake as well
        detail = _failure(error, 0.0).detail.strip()
        raise UserError(f"rewards.{spec.name}: {spec.path} cannot be imported:\n{_last_lines(detail, 6)}") from None


def _end_flood() -> None:
    if not processes.has_children():
        return
    left = [pid for pid in processes.descendants(_State.pid) if pid not in _State.imported_children]
    if len(left) > MAX_CHILDREN:
        processes.kill(left)
        processes.reap(left)


def _note_thread_error(args: threading.ExceptHookArgs) -> None:
    told = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    _State.thread_errors += (_shorten(f"raised in a thread: {told}"),)


def _shorten(text: str) -> str:
    half = DETAIL_CHARACTERS // 2
    return text if len(text) <= DETAIL_CHARACTERS else f"{text[:half]}\n ...\n{text[-half:]}"


def _last_lines(text: str, count: int) -> str:
    return "\n".join(text.splitlines()[-count:])


def _be_quiet() -> None:
    """What functions print goes nowhere: megabytes of it would drown the run's own lines (`replay` shows it)."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _grant_cpu(index: int, count: int) -> None:
    """CPU seconds for this call on top of what the process used; past them the kernel ends it (SIGXCPU)."""
    settings = _State.settings
    seconds = settings.cpu_seconds or 2 * deadline_of(_State.specs[index], settings)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + seconds * count) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
