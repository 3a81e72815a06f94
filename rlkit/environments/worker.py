"""The process in which sessions run. It may be killed at any moment, so nothing here cleans up.

From the supervisor:  (session, "open", pickled row, seed), (session, "act", message), (session, "finish"), (session, "close")
To the supervisor:    ("loaded", kinds) or ("refused", message) first; then ("busy",) as each call begins, ("answer", session, answer),
                      ("refused", message) where the user must change something, ("spent",) where it should be replaced

Calls run one at a time, async ones together: those of one session in their order. Sync code finds no running event loop, so that it may
call asyncio.run. Each session draws its own random numbers, whatever the others draw between its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import random
import sys
import time
import traceback
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from rlkit.environments import job
from rlkit.environments.base import Answer, EpisodeEnd, EpisodeFailure, Observation, Opening
from rlkit.environments.loading import choose_environment, load_environment
from rlkit.environments.sessions import CallOverdue, Session, create_session
from rlkit.errors import UserError
from rlkit.rewarding import restore, worker
from rlkit.rewarding.outcome import to_plain_text
from rlkit.rewarding.scores import InvalidScore

ERROR_LINES = 8  # of a traceback in a failure
Result = tuple[Any, BaseException | None]  # of a call: what it returned, what it raised
LEFTOVERS = 512  # threads, child processes, open files or variables that sessions may leave behind before the worker is replaced


class _RandomState:
    """The random numbers of one session: those of `random`, and of numpy's global state where numpy is loaded."""

    def __init__(self, seed: int) -> None:
        self._seed, self._own = seed, random.Random(seed).getstate()
        self._numpy: Any = None  # until numpy is loaded

    def enter(self) -> None:
        random.setstate(self._own)
        if numpy := sys.modules.get("numpy.random"):
            if self._numpy is None:
                numpy.seed(self._seed % 2**32)
            else:
                numpy.set_state(self._numpy)

    def leave(self) -> None:
        self._own = random.getstate()
        if numpy := sys.modules.get("numpy.random"):
            self._numpy = numpy.get_state()


class _Caller:
    """Calls the code of one session's environment: see sessions.Caller."""

    def __init__(self, process: _Process, seed: int) -> None:
        self._process, self._random = process, _RandomState(seed)

    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._process.send(("busy",))
        timeout = self._process.job.timeout
        worker.CALL_DEADLINE.set(time.monotonic() + timeout)
        call = _run(function, args, kwargs, self._process.restore)
        task = asyncio.ensure_future(_await(_drive(call, self._random)))
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            task.cancel()
            raise CallOverdue
        if task.cancelled() or task.exception() is not None:
            os._exit(1)  # what the call left behind struck outside it: nothing here can be relied on any more
        value, error = task.result()
        if error is not None:
            raise error
        return value


async def _await(call: Awaitable[Result]) -> Result:
    return await call


async def _run(function: Callable[..., Any], args: Any, kwargs: Any, restore: Callable[[], None]) -> Result:
    """What the function returned, and what it raised: never raises, since a SystemExit in a task ends the event loop."""
    loop, set_loop = asyncio.get_running_loop(), asyncio._set_running_loop
    try:
        if not inspect.iscoroutinefunction(function):
            set_loop(None)  # so that asyncio.run works in it as it does where no loop runs
        try:
            value = function(*args, **kwargs)
        finally:
            restore()  # before anything else: until then not even the builtins need to be there
            set_loop(loop)
        if inspect.isawaitable(value):
            try:
                value = await value
            finally:
                restore()
        return value, None
    except BaseException as error:  # noqa: BLE001 - SystemExit too: the session turns it into an answer or a failure
        restore()  # a trace function that was left behind may have struck in the first attempt
        set_loop(loop)
        return None, error


@types.coroutine
def _drive(call: Coroutine[Any, Any, Any], state: _RandomState) -> Generator[Any, Any, Any]:
    """Await `call` with its own random numbers: kept when the call waits, put back when it continues."""
    resume: Callable[[Any], Any] = call.send
    value: Any = None
    pid = os.getpid()
    while True:
        state.enter()
        try:
            awaited = resume(value)
        except StopIteration as end:
            return end.value
        finally:
            if os.getpid() != pid:
                os._exit(0)  # a fork made by the environment returned through it; there is one worker only
            state.leave()
        try:
            resume, value = call.send, (yield awaited)
        except BaseException as error:  # noqa: BLE001 - the timeout, or an error of what it waited for: the call handles it
            resume, value = call.throw, error


class _Process:
    """The sessions of this worker, and its connection to the supervisor."""

    def __init__(self, connection: Connection, work: job.SessionJob) -> None:
        self.job, self._connection = work, connection
        self.environments = {
            one.name: load_environment(one, work.kinds[number] if work.kinds else None) for number, one in enumerate(work.environments)
        }
        self._intact, self._leftovers = restore.WorkerState(), restore.count_leftovers()
        self._sessions: dict[int, Session] = {}
        self._order: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: tuple[Any, ...]) -> None:
        try:
            self._connection.send(message)
        except OSError:
            os._exit(1)  # the supervisor is gone, or the code closed the connection

    def restore(self) -> None:
        """After a call: undo what it may not change."""
        if not self._intact.restore():
            os._exit(1)

    def read(self) -> None:
        """Take the next message of the supervisor, which has written it."""
        try:
            number, verb, *details = self._connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        task = asyncio.get_running_loop().create_task(self._serve(number, verb, details))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, verb: str, details: list[Any]) -> None:
        """One call of a session, after those before it."""
        async with self._order.setdefault(number, asyncio.Lock()):
            answer: Answer | None
            try:
                answer = await getattr(self, f"_{verb}")(number, *details)
            except UserError as error:
                self.send(("refused", str(error)))
                return
            except CallOverdue:
                answer = EpisodeFailure(f"no answer within {self.job.timeout:g} s")
            except BaseException as error:  # noqa: BLE001 - whatever reset, step or get_reward raise ends this session alone
                answer = EpisodeFailure(_describe_failure(error))
            if isinstance(answer, EpisodeFailure):
                await self._close(number)
        self.send(("answer", number, answer))
        if not self._sessions and self._has_leftovers():
            self.send(("spent",))

    async def _open(self, number: int, payload: bytes, seed: int) -> Opening:
        row: Mapping[str, Any] = pickle.loads(payload)
        environment = choose_environment(self.environments, row)
        session = self._sessions[number] = create_session(environment, _Caller(self, seed), self.job.max_observation)
        start = await session.open(row, seed)
        known = environment.kind.tools or {}
        tools = None if start.tools is None else tuple(known[tool] if isinstance(tool, str) else tool for tool in start.tools)
        return Opening(tuple(start.messages), tools)

    async def _act(self, number: int, message: Mapping[str, Any]) -> Observation | EpisodeFailure:
        session = self._sessions.get(number)
        return await session.act(message) if session else EpisodeFailure("its session is closed")

    async def _finish(self, number: int) -> EpisodeEnd | EpisodeFailure:
        session = self._sessions.get(number)
        if session is None:
            return EpisodeFailure("its session is closed")
        end = await session.finish()
        await self._close(number)
        return end

    async def _close(self, number: int) -> None:
        """What closing raises changes nothing: the episode is over."""
        session = self._sessions.pop(number, None)
        self._order.pop(number, None)
        if session is not None:
            with contextlib.suppress(BaseException):
                await session.close()

    def _has_leftovers(self) -> bool:
        return any(count > self._leftovers[what] + LEFTOVERS for what, count in restore.count_leftovers().items())


def _describe_failure(error: BaseException) -> str:
    if isinstance(error, InvalidScore):
        return f"its reward: {error}"
    try:
        here = os.path.dirname(__file__)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(f"{here}{os.sep}")]
        text = "".join([*traceback.format_list(frames), *traceback.format_exception_only(type(error), error)])
        return to_plain_text("\n".join(text.strip().splitlines()[-ERROR_LINES:]))
    except BaseException:  # noqa: BLE001 - methods of the error may raise anything
        return "an error that cannot be described: its own methods raise"


def serve_sessions(connection: Connection, work: job.SessionJob, supervisor: int) -> None:
    """Load the environments, then serve sessions until the supervisor ends. supervisor: its process id."""
    worker.confine_worker(work.memory_gib, supervisor)
    try:
        process = _Process(connection, work)
        connection.send(("loaded", tuple(one.kind for one in process.environments.values())))
    except UserError as error:
        connection.send(("refused", str(error)))
        return
    except BaseException as error:  # noqa: BLE001 - a file that calls sys.exit while it is imported is a user error too
        names = ", ".join(one.path for one in work.environments)
        connection.send(("refused", f"environment.path {names} cannot be loaded:\n{_describe_failure(error)}"))
        return
    loop = asyncio.new_event_loop()
    loop.add_reader(connection.fileno(), process.read)
    loop.run_forever()
