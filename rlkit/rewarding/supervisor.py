"""The process between the trainer and the workers: hands out work, enforces timeouts, replaces dead workers, leaves no process behind.

It is a child subreaper: any process that a worker leaves behind, however it detached itself, becomes a child of this process and is killed
here. Each worker is a pebble pool of its own, so a worker that dies while it holds a lock does not harm the others. The supervisor ends
with the trainer, even when the trainer is killed: it watches both the connection and the process.

From the trainer:  (rewards, limits) first; then [(unit, reward index, [pickled items]) ...] again and again
To the trainer:    ("ready", [FunctionKind ...]) or ("broken", message) first; then ("scored", [(unit, [Outcome ...]) ...])
                   and ("replaced", reward index, what grew)
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from rlkit.rewarding import processes, worker
from rlkit.rewarding.job import LoadResult, WorkerLimits, WorkerReward
from rlkit.rewarding.outcome import MAX_CALLS_TOGETHER, Outcome, OutcomeKind, are_quick
from rlkit.rewarding.tree_usage import find_group_parent, remove_abandoned_groups
from rlkit.runtime.processes import list_children, list_descendants

SWEEP_SECONDS = 1.0  # how often to look for orphans while nothing fails
MEMORY_SECONDS = 0.2  # how often to measure the memory of workers: the kernel limits what they allocate, but not what they share
KILL_SECONDS = 0.3  # between SIGTERM, which a worker cannot handle, and SIGKILL
LOCK_SECONDS = 5.0  # to take the lock of a pool, which has one worker only: longer means that the pool is broken
POLL_SECONDS = 0.2  # how often pebble checks timeouts and dead workers; each check wakes a core that the engine uses
GRACE_SECONDS = 3.0  # after the timeout: a pool in which pebble has not acted by then is broken and is replaced
MAX_BROKEN_POOLS = 3  # in a row, for the same unit
TOGETHER_SECONDS = 1.0  # timeout of quick calls that go together; after it, each one is called alone with its own timeout


@dataclass(frozen=True)
class WorkUnit:
    """What one worker computes before it answers. parts: (unit number, pickled items). concurrent: an async function gets all at once."""

    index: int
    parts: Sequence[tuple[int, Sequence[bytes]]]
    timeout: float
    concurrent: bool

    @property
    def calls(self) -> list[Sequence[bytes]]:
        """The pickled items of each call of the function."""
        each = [payloads for _, payloads in self.parts]
        return [[payload for payloads in each for payload in payloads]] if self.concurrent else each


class WorkQueue:
    """Units that wait for a worker. Waiting units of an async reward go out together. Those of a quick reward too: one at first, then
    twice as many each time, until a call is slow or ends its worker."""

    def __init__(self, rewards: Sequence[WorkerReward]) -> None:
        self._rewards = rewards
        self._waiting: deque[tuple[int, int, Sequence[bytes]]] = deque()
        self._changed = threading.Condition()
        self.concurrent = [False] * len(rewards)
        self._together = [1] * len(rewards)  # calls that go together, by reward

    def put(self, units: Sequence[tuple[int, int, Sequence[bytes]]]) -> None:
        """units: (unit number, reward index, pickled items)."""
        with self._changed:
            self._waiting.extend(units)
            self._changed.notify(len(units))

    def record_result(self, index: int, outcomes: Sequence[Outcome] | None) -> None:
        """Adapt to the outcomes of a unit of reward `index`. None: it ended its worker."""
        self._together[index] = min(2 * self._together[index], MAX_CALLS_TOGETHER) if outcomes is not None and are_quick(outcomes) else 1

    def take(self) -> WorkUnit:
        """The next unit; waits until there is one."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            unit, index, payloads = self._waiting.popleft()
            parts, reward, concurrent = [(unit, payloads)], self._rewards[index], self.concurrent[index]
            limit = reward.concurrency if concurrent else self._together[index]
            if limit > 1:
                same = {other: items for other, at, items in self._waiting if at == index}
                parts += list(same.items())[: limit - 1]
                chosen = {number for number, _ in parts}
                self._waiting = deque(entry for entry in self._waiting if entry[0] not in chosen)
            timeout = reward.timeout * (1 if concurrent else len(payloads))
            if len(parts) > 1 and not concurrent:
                timeout = min(timeout, TOGETHER_SECONDS)
        return WorkUnit(index, parts, timeout, concurrent)


class WorkerSlot(threading.Thread):
    """One worker at a time, replaced when it dies, and the thread that gives it work."""

    def __init__(self, rewards: Sequence[WorkerReward], limits: WorkerLimits, work: WorkQueue, results: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self._rewards, self._limits, self._work, self._results = rewards, limits, work, results
        self._loaded = self._stopped = False
        self._pool_lock = threading.Lock()
        self._pool = self._create_pool()
        self._over_memory = False  # whether check_memory() killed the worker
        self.worker = 0  # its process id, once it has imported the reward files
        self.calls = 0  # odd while a call is running: orphans seen meanwhile may belong to it

    def run(self) -> None:
        loaded = self._load()
        self._results.put(("broken", loaded.message) if loaded.message else ("ready", loaded.kinds))
        while not loaded.message:
            unit = self._work.take()
            self.calls += 1
            self._score(unit)
            self.calls += 1

    def check_memory(self) -> None:
        """Kill the worker where it uses more memory than it may, what it shares included."""
        if self.worker and processes.measure_memory(self.worker) > self._limits.memory_gib * 2**30:
            self._over_memory = True
            processes.kill([self.worker])

    def stop(self) -> None:
        """End the worker and start no new one."""
        with self._pool_lock:
            self._stopped = True
            self._pool.stop()

    def join_pool(self) -> None:
        """Give the locks of the dead pool back to the system."""
        _join_silently(self._pool)

    def _score(self, unit: WorkUnit) -> None:
        outcomes = self._run_unit(unit)
        self._work.record_result(unit.index, outcomes)
        if outcomes is None and len(unit.parts) > 1:
            for part in unit.parts:  # one of them blocked or killed the worker: each is called again alone
                timeout = unit.timeout if unit.concurrent else self._rewards[unit.index].timeout * len(part[1])
                self._score(replace(unit, parts=[part], timeout=timeout))
            return
        left = deque([self._last_failure] * sum(map(len, unit.calls)) if outcomes is None else outcomes)
        made, parts = [], deque(unit.parts)
        while parts and len(parts[0][1]) <= len(left):
            number, payloads = parts.popleft()
            made.append((number, [left.popleft() for _ in payloads]))
        self._results.put(("scored", made))
        if parts:
            self._score(replace(unit, parts=list(parts)))  # in the next worker

    def _run_unit(self, unit: WorkUnit) -> list[Outcome] | None:
        """Outcomes, or None with self._last_failure set where the worker was killed or died; fewer where it had to be replaced."""
        deaths = 0
        hard_limit = unit.timeout + (1.0 if unit.concurrent else 0.0)  # an async worker enforces the timeouts itself
        for _ in range(MAX_BROKEN_POOLS):
            if not self._loaded:
                self._load()
            started = time.monotonic()
            try:
                return self._call_worker(unit, hard_limit)
            except TimeoutError:
                self._loaded, self.worker = False, 0
                self._set_failure(OutcomeKind.TIMEOUT, f"no answer within {unit.timeout:g} s; its worker was killed and replaced", started)
                return None
            except Exception as error:  # noqa: BLE001 - pebble: ProcessExpired for a dead worker, RuntimeError and others for a broken pool
                self._loaded = False
                code = getattr(error, "exitcode", None)
                limit = f"used more memory than rewarding.memory_gib={self._limits.memory_gib:g} allows"
                self._set_failure(OutcomeKind.ERROR, f"its worker process {limit if self._over_memory else describe_exit(code)}", started)
                self._replace_pool()  # pebble would replace the worker, but not the locks that it may have held when it died
                # Try once more: what killed the worker may have been left over from an earlier call.
                if code is not None and ((deaths := deaths + 1) > 1 or len(unit.parts) > 1):
                    return None
        return None

    def _call_worker(self, unit: WorkUnit, hard_limit: float) -> list[Outcome]:
        """What the worker answers; raises what pebble raises where it does not. Replaces the worker where its calls have changed it."""
        future = self._pool.schedule(worker.run_calls, args=(unit.index, unit.calls), timeout=hard_limit)
        concurrent.futures.wait([future], timeout=hard_limit + GRACE_SECONDS)
        if not future.done():
            raise RuntimeError("the pool did not enforce its timeout")
        result = future.result()
        if result.spent:
            self._replace_pool()
        if result.growth:
            self._results.put(("replaced", unit.index, result.growth))
        return result.outcomes  # type: ignore[no-any-return]

    def _set_failure(self, kind: OutcomeKind, detail: str, started: float) -> None:
        self._last_failure = Outcome(kind, detail=detail, seconds=time.monotonic() - started)

    def _load(self) -> LoadResult:
        """Import the reward files in the worker: a call of its own, so that it does not count against the timeout of the first sample."""
        names = ", ".join(reward.path for reward in self._rewards)
        limit = self._limits.load_timeout
        for _ in range(MAX_BROKEN_POOLS):
            try:
                future = self._pool.schedule(worker.load_rewards, timeout=limit)
                loaded: LoadResult = future.result(limit + 60)  # a process may take long to start on a busy machine
                self._over_memory, self.worker, self._loaded = False, loaded.pid, True
                return loaded
            except TimeoutError:
                self._replace_pool()
                return LoadResult([], f"rewards: importing {names} took more than {limit:g} s (rewarding.load_timeout)", 0)
            except Exception as error:  # noqa: BLE001 - as in _run_unit
                message = f"rewards: the worker process {describe_exit(getattr(error, 'exitcode', None))} while it imported {names}"
                self._replace_pool()
        return LoadResult([], message, 0)

    def _create_pool(self) -> Any:
        from pebble import ProcessPool

        arguments = (self._rewards, self._limits, os.getpid())
        return ProcessPool(1, initializer=worker.init_worker, initargs=arguments, context=multiprocessing.get_context("spawn"))

    def _replace_pool(self) -> None:
        with self._pool_lock:
            if self._stopped:
                sys.exit()  # ends this thread: a stopped pool looks broken from here
            old, self._pool, self._loaded, self.worker = self._pool, self._create_pool(), False, 0
        old.stop()
        threading.Thread(target=_join_silently, args=(old,), daemon=True).start()  # it may hang on what broke it


class CountsCalls(Protocol):
    """What OrphanReaper needs of the slot of a worker."""

    @property
    def calls(self) -> int:
        """Odd while a call is running, and never the same again."""


class OrphanReaper:
    """Kills processes that outlive the call that started them, or that use more memory than a worker may."""

    def __init__(self, slots: Sequence[CountsCalls], memory_gib: float = math.inf) -> None:
        self._slots, self._memory_gib = slots, memory_gib
        self._seen: dict[int, dict[CountsCalls, int]] = {}  # pid -> `calls` of each slot when the process was first seen

    def sweep(self) -> None:
        """Kill every orphan that cannot belong to a running call."""
        now, before, children = {slot: slot.calls for slot in self._slots}, self._seen, list_children()
        self._seen = {pid: before.get(pid, now) for pid in self._list_orphans(children)}
        workers = self._list_workers()
        large = [pid for pid in list_descendants(os.getpid(), children) if processes.measure_memory(pid) > self._memory_gib * 2**30]
        processes.kill(set(large) - workers)  # check_memory() of a slot looks after its worker
        over = [pid for pid, then in self._seen.items() if all(calls % 2 == 0 or now.get(slot) != calls for slot, calls in then.items())]
        processes.kill(over)
        processes.reap(over)

    def kill_all(self, seconds: float = 10.0) -> None:
        """Kill every worker and every descendant, until none is left."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            workers, orphans = self._list_workers(), self._list_orphans(list_children())
            if not workers and not orphans:
                return
            processes.kill([*workers, *orphans])
            processes.reap(orphans)  # multiprocessing takes the exit status of the workers: it would wait forever if there is none
            time.sleep(0.001)

    def _list_workers(self) -> set[int]:
        return {child.pid for child in multiprocessing.active_children() if child.pid is not None}

    def _list_orphans(self, children: Mapping[int, Sequence[tuple[int, int]]]) -> list[int]:
        # A child that is no worker and not of our session was adopted; one of our session is a worker that is just starting.
        own_session = os.getsid(0)
        adopted = [pid for pid, session in children.get(os.getpid(), ()) if session != own_session]
        return [pid for pid in adopted if pid not in self._list_workers()]


def serve_trainer(descriptor: int, trainer: int, serve: Callable[[Connection, int], None] | None = None) -> None:
    """Serve one trainer (its process id) over the connected socket `descriptor` until the trainer closes it or ends.

    serve: what to do with the connection and the handle of the trainer's process, in place of scoring."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the trainer decides when it ends
    processes.become_subreaper()
    connection, trainer_handle = Connection(descriptor), os.pidfd_open(trainer)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)  # a worker that is killed while it starts would write a traceback between the lines of the run
    try:
        (serve or _serve_connection)(connection, trainer_handle)
    except BaseException:  # noqa: BLE001 - whatever it is: only the trainer can report it
        with contextlib.suppress(OSError):
            connection.send(("crashed", traceback.format_exc()))
    OrphanReaper([]).kill_all()
    if parent := find_group_parent():
        remove_abandoned_groups(parent)  # of the workers that were killed
    os._exit(0)  # threads that wait for work would keep it alive


def _serve_connection(connection: Connection, trainer_handle: int) -> None:
    import pebble

    pebble.CONSTS.sleep_unit, pebble.CONSTS.term_timeout, pebble.CONSTS.channel_lock_timeout = POLL_SECONDS, KILL_SECONDS, LOCK_SECONDS
    rewards, limits = connection.recv()
    work = WorkQueue(rewards)
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    slots = [WorkerSlot(rewards, limits, work, results) for _ in range(limits.workers)]
    orphans = OrphanReaper(slots, limits.memory_gib)
    threading.Thread(target=_send_results, args=(connection, results, work), daemon=True).start()
    threading.Thread(target=_watch_memory, args=(slots,), daemon=True).start()
    for slot in slots:
        slot.start()
    _receive_work(connection, trainer_handle, work, orphans)
    for slot in slots:
        slot.stop()
    orphans.kill_all()
    for slot in slots:
        slot.join_pool()
    orphans.kill_all()
    stop_resource_tracker()


def _receive_work(connection: Connection, trainer_handle: int, work: WorkQueue, orphans: OrphanReaper) -> None:
    """Take work from the trainer until it closes the connection or ends."""
    last_sweep = time.monotonic()
    while True:
        ready = wait([connection, trainer_handle], timeout=SWEEP_SECONDS)
        if trainer_handle in ready and connection not in ready:
            return
        if connection in ready:
            try:
                units = connection.recv()
            except (EOFError, OSError):
                return
            work.put(units)
        if time.monotonic() - last_sweep >= SWEEP_SECONDS:
            orphans.sweep()
            last_sweep = time.monotonic()


def _send_results(connection: Connection, results: queue.SimpleQueue[Any], work: WorkQueue) -> None:
    """Pass results on to the trainer; "ready" or "broken" only from the first slot."""
    started = False
    while True:
        message = results.get()
        if message[0] in ("ready", "broken"):
            if started:
                continue
            started = True
            work.concurrent = [kind.is_async and not kind.batch for kind in message[1]] if message[0] == "ready" else []
        try:
            connection.send(message)
        except OSError:
            return  # the trainer closed it; _receive_work sees that too


def _watch_memory(slots: Sequence[WorkerSlot]) -> None:
    while True:
        time.sleep(MEMORY_SECONDS)
        for slot in slots:
            slot.check_memory()


def _join_silently(pool: Any) -> None:
    with contextlib.suppress(Exception):  # pebble raises errors of the pool; its processes are killed by other means
        pool.join(GRACE_SECONDS)


def describe_exit(code: int | None) -> str:
    """How a process ended, as the end of a sentence."""
    if code is None:
        return "did not answer"
    if code >= 0:
        return f"ended itself with exit code {code}"
    hints = {signal.SIGXCPU: ": it used up its CPU time", signal.SIGKILL: " (by itself, or because the machine ran out of memory)"}
    return f"was ended by {signal.Signals(-code).name}{hints.get(signal.Signals(-code), '')}"


def stop_resource_tracker() -> None:
    """End the helper process of multiprocessing and wait for it: it would outlive this process by a moment."""
    from multiprocessing import resource_tracker

    # A private name: without it the helper still ends by itself, only later. It waits forever if anybody holds the pipe of the tracker.
    stop = getattr(resource_tracker._resource_tracker, "_stop", lambda: None)
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(1.0)
