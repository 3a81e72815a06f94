"""The process between the trainer and the workers: it hands out work, keeps the deadlines, replaces the dead, and leaves nobody behind.

It is a child subreaper: whatever a worker left, however it detached itself, comes to this process and is ended here. Each worker is a
pebble pool of its own, so that one that dies while it holds a lock harms no other. It ends with the trainer, even when that is killed:
the end of the connection and the end of the process are both watched.

Said by the trainer:   (specs, settings) first; then [(unit, reward index, [pickled items]) ...] again and again
Said to the trainer:   ("ready", [Kind ...]) or ("broken", message) first; then ("told", [(unit, [Outcome ...]) ...])
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from rlkit.rewarding import processes, worker
from rlkit.rewarding.outcome import LUMP, Outcome, OutcomeKind, quick
from rlkit.rewarding.spec import Kind, RewardSettings, RewardSpec

SWEEP_SECONDS = 1.0  # how often orphans are looked for while nothing goes wrong
KILL_SECONDS = 0.3  # between SIGTERM, which a worker cannot handle, and SIGKILL
LOCK_SECONDS = 5.0  # for a pool's lock, which only its one worker takes: past it something is wrong
POLL_SECONDS = 0.05  # how often pebble looks at deadlines and dead workers
GRACE_SECONDS = 3.0  # past the deadline: if pebble has not acted by then, the pool is broken and is thrown away
BROKEN_POOLS = 3  # in a row, for the same unit
LUMP_SECONDS = 1.0  # in which a lump of quick calls ends, or each of them gets a try, and the deadline, of its own


@dataclass(frozen=True)
class Unit:
    """What one worker does before it answers: parts are (unit number, pickled items), `calls` what the function is given of them."""

    index: int
    parts: Sequence[tuple[int, Sequence[bytes]]]
    deadline: float
    together: bool  # an async function is asked for all at once

    @property
    def calls(self) -> list[Sequence[bytes]]:
        each = [payloads for _, payloads in self.parts]
        return [[payload for payloads in each for payload in payloads]] if self.together else each


class WorkQueue:
    """Units that wait for a worker. Those of an async reward that wait together are handed out together, and those of a quick one: one at
    first, then twice as many each time, until one of them was slow or killed its worker."""

    def __init__(self, specs: Sequence[RewardSpec], settings: RewardSettings) -> None:
        self._specs, self._settings = specs, settings
        self._waiting: deque[tuple[int, int, Sequence[bytes]]] = deque()
        self._changed = threading.Condition()
        self.together = [False] * len(specs)
        self._lumps = [1] * len(specs)

    def put(self, units: Sequence[tuple[int, int, Sequence[bytes]]]) -> None:
        with self._changed:
            self._waiting.extend(units)
            self._changed.notify(len(units))

    def told(self, index: int, outcomes: Sequence[Outcome] | None) -> None:
        """What came of a call; None: it ended its worker."""
        self._lumps[index] = min(2 * self._lumps[index], LUMP) if outcomes is not None and quick(outcomes) else 1

    def deadline(self, index: int) -> float:
        """Seconds for one sample."""
        return worker.deadline_of(self._specs[index], self._settings)

    def take(self) -> Unit:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            unit, index, payloads = self._waiting.popleft()
            parts = [(unit, payloads)]
            together = self.together[index]
            limit = self._specs[index].concurrency if together else self._lumps[index]
            if limit > 1:
                same = {other: its for other, at, its in self._waiting if at == index}
                parts += list(same.items())[: limit - 1]
                chosen = {number for number, _ in parts}
                self._waiting = deque(entry for entry in self._waiting if entry[0] not in chosen)
            deadline = self.deadline(index) * (1 if together else len(payloads))
            if len(parts) > 1 and not together:
                deadline = min(deadline, LUMP_SECONDS)
        return Unit(index, parts, deadline, together)


class WorkerSlot(threading.Thread):
    """One worker at a time, replaced when it dies, and the thread that gives it work."""

    def __init__(self, specs: Sequence[RewardSpec], settings: RewardSettings, agenda: WorkQueue, out: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self._specs, self._settings, self._agenda, self._out = specs, settings, agenda, out
        self._loaded = self._stopped = False
        self._changing = threading.Lock()
        self._pool = self._new_pool()
        self.calls = 0  # odd while a call is under way: orphans seen during it may still be its own

    def run(self) -> None:
        kinds, trouble = self._load()
        self._out.put(("broken", trouble) if trouble else ("ready", kinds))
        while not trouble:
            unit = self._agenda.take()
            self.calls += 1
            self._score(unit)
            self.calls += 1

    def stop(self) -> None:
        """No new worker from now on."""
        with self._changing:
            self._stopped = True
            self._pool.stop()

    def join_pool(self) -> None:
        """Give the dead pool's locks back to the system."""
        _quietly_join(self._pool)

    def _score(self, unit: Unit) -> None:
        outcomes = self._ask(unit)
        self._agenda.told(unit.index, outcomes)
        if outcomes is None and len(unit.parts) > 1:
            for part in unit.parts:  # the one that blocked or killed the worker took others with it: each gets its own try
                deadline = unit.deadline if unit.together else self._agenda.deadline(unit.index) * len(part[1])
                self._score(replace(unit, parts=[part], deadline=deadline))
            return
        told = iter(outcomes or [self._last_failure] * sum(map(len, unit.calls)))
        self._out.put(("told", [(number, [next(told) for _ in payloads]) for number, payloads in unit.parts]))

    def _ask(self, unit: Unit) -> list[Outcome] | None:
        """Outcomes, or None with self._last_failure set where the worker was killed or died."""
        deaths = 0
        hard_limit = unit.deadline + (1.0 if unit.together else 0.0)  # an async worker keeps the deadlines itself
        for _ in range(BROKEN_POOLS):
            if not self._loaded:
                self._load()
            started = time.monotonic()
            try:
                future = self._pool.schedule(worker.run_each, args=(unit.index, unit.calls), timeout=hard_limit)
                concurrent.futures.wait([future], timeout=hard_limit + GRACE_SECONDS)
                if not future.done():
                    raise RuntimeError("the pool did not keep its deadline")
                return future.result()  # type: ignore[no-any-return]
            except TimeoutError:
                self._loaded = False
                self._fail(OutcomeKind.TIMEOUT, f"no answer within {unit.deadline:g} s; its worker was killed and replaced", started)
                return None
            except Exception as error:  # noqa: BLE001 - pebble: ProcessExpired for a dead worker, RuntimeError and others for a broken pool
                self._loaded = False
                code = getattr(error, "exitcode", None)
                self._fail(OutcomeKind.ERROR, f"its worker process {_cause(code)}", started)
                self._renew()  # pebble would replace the worker, but not the locks that it may have held when it died
                # Once more: what killed the worker may have been left over from an earlier call.
                if code is not None and ((deaths := deaths + 1) > 1 or len(unit.parts) > 1):
                    return None
        return None

    def _fail(self, kind: OutcomeKind, detail: str, started: float) -> None:
        self._last_failure = Outcome(kind, detail=detail, seconds=time.monotonic() - started)

    def _load(self) -> tuple[list[Kind], str]:
        """Import the reward files in the worker: a call of its own, so that the first sample's deadline does not pay for it."""
        names = ", ".join(spec.path for spec in self._specs)
        for _ in range(BROKEN_POOLS):
            try:
                future = self._pool.schedule(worker.load, timeout=self._settings.load_deadline)
                answer = future.result(self._settings.load_deadline + 60)  # a process may take long to start on a busy machine
                self._loaded = True
                return answer  # type: ignore[no-any-return]
            except TimeoutError:
                trouble = f"rewards: importing {names} took more than {self._settings.load_deadline:g} s (rewarding.load_deadline)"
                self._renew()
                return [], trouble
            except Exception as error:  # noqa: BLE001 - as in _ask
                trouble = f"rewards: the worker process {_cause(getattr(error, 'exitcode', None))} while it imported {names}"
                self._renew()
        return [], trouble

    def _new_pool(self) -> Any:
        from pebble import ProcessPool

        arguments = (self._specs, self._settings, os.getpid())
        return ProcessPool(1, initializer=worker.start, initargs=arguments, context=multiprocessing.get_context("spawn"))

    def _renew(self) -> None:
        with self._changing:
            if self._stopped:
                sys.exit()  # ends this thread: a pool that was stopped looks broken from here
            old, self._pool, self._loaded = self._pool, self._new_pool(), False
        old.stop()
        threading.Thread(target=_quietly_join, args=(old,), daemon=True).start()  # it may hang on what broke it


class Orphans:
    """Ends processes that outlived what started them."""

    def __init__(self, slots: Sequence[WorkerSlot]) -> None:
        self._slots = slots
        self._seen: dict[int, list[int]] = {}  # pid -> what each slot was doing when it was first seen

    def sweep(self) -> None:
        """End every orphan that cannot belong to a call that is still under way."""
        now, old = [slot.calls for slot in self._slots], self._seen
        self._seen = {pid: old.get(pid, now) for pid in self._orphans()}
        done = [pid for pid, then in self._seen.items() if all(a % 2 == 0 or a != b for a, b in zip(then, now, strict=True))]
        processes.kill(done)
        processes.reap(done)

    def end_all(self, seconds: float = 10.0) -> None:
        """End every worker and every descendant, until none is left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            workers, orphans = self._workers(), self._orphans()
            if not workers and not orphans:
                return
            processes.kill([*workers, *orphans])
            processes.reap(orphans)  # the workers' exit status is for multiprocessing to take: it waits for ever if it finds none
            time.sleep(0.001)

    def _workers(self) -> set[int]:
        return {child.pid for child in multiprocessing.active_children() if child.pid is not None}

    def _orphans(self) -> list[int]:
        # A child that is no worker and not of our session came here by adoption; one of our session is a worker that is just starting.
        mine = os.getsid(0)
        adopted = [pid for pid, session in processes.children_of()[os.getpid()] if session != mine]
        return [pid for pid in adopted if pid not in self._workers()]


def main(descriptor: int, trainer: int) -> None:
    """Serve one trainer (its process id) over the connected socket `descriptor` until it closes it or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the trainer says when it is over
    processes.become_subreaper()
    connection, alive = Connection(descriptor), os.pidfd_open(trainer)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 2)  # a worker that is killed while it starts would write a traceback into the run's own lines
    try:
        _serve(connection, alive)
    except BaseException:  # noqa: BLE001 - whatever it is: the trainer must hear it, nobody else can tell
        with contextlib.suppress(OSError):
            connection.send(("crashed", traceback.format_exc()))
    Orphans([]).end_all()
    os._exit(0)  # threads that wait for work would keep it alive


def _serve(connection: Connection, alive: int) -> None:
    import pebble

    pebble.CONSTS.sleep_unit, pebble.CONSTS.term_timeout, pebble.CONSTS.channel_lock_timeout = POLL_SECONDS, KILL_SECONDS, LOCK_SECONDS
    specs, settings = connection.recv()
    agenda: WorkQueue = WorkQueue(specs, settings)
    out: queue.SimpleQueue[Any] = queue.SimpleQueue()
    slots = [WorkerSlot(specs, settings, agenda, out) for _ in range(settings.workers)]
    orphans = Orphans(slots)
    threading.Thread(target=_speak, args=(connection, out, agenda), daemon=True).start()
    for slot in slots:
        slot.start()
    _listen(connection, alive, agenda, orphans)
    for slot in slots:
        slot.stop()
    orphans.end_all()
    for slot in slots:
        slot.join_pool()
    orphans.end_all()
    _end_resource_tracker()


def _listen(connection: Connection, alive: int, agenda: WorkQueue, orphans: Orphans) -> None:
    """Take work from the trainer until it hangs up or ends."""
    swept = time.monotonic()
    while True:
        ready = wait([connection, alive], timeout=SWEEP_SECONDS)
        if alive in ready and connection not in ready:
            return
        if connection in ready:
            try:
                units = connection.recv()
            except (EOFError, OSError):
                return
            agenda.put(units)
        if time.monotonic() - swept >= SWEEP_SECONDS:
            orphans.sweep()
            swept = time.monotonic()


def _speak(connection: Connection, out: queue.SimpleQueue[Any], agenda: WorkQueue) -> None:
    """Tell the trainer; only the first slot's greeting counts."""
    greeted = False
    while True:
        message = out.get()
        if message[0] != "told":
            if greeted:
                continue
            greeted = True
            agenda.together = [kind.is_async and not kind.batch for kind in message[1]] if message[0] == "ready" else []
        try:
            connection.send(message)
        except OSError:
            return  # it hung up; _listen sees that too


def _quietly_join(pool: Any) -> None:
    with contextlib.suppress(Exception):  # pebble raises what it met; everything it started is ended by other means
        pool.join(GRACE_SECONDS)


def _cause(code: int | None) -> str:
    if code is None:
        return "did not answer"
    if code >= 0:
        return f"ended itself with exit code {code}"
    hints = {signal.SIGXCPU: ": it used up its CPU time", signal.SIGKILL: " (by itself, or because the machine ran out of memory)"}
    return f"was ended by {signal.Signals(-code).name}{hints.get(signal.Signals(-code), '')}"


def _end_resource_tracker() -> None:
    """multiprocessing's own helper process: ended and waited for, or it would outlive us by a moment."""
    from multiprocessing import resource_tracker

    # A private name: without it the helper still ends by itself, only later. It waits for ever if anybody holds the tracker's pipe.
    stop = getattr(resource_tracker._resource_tracker, "_stop", lambda: None)
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(1.0)
