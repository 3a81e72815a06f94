"""The process between the trainer and the workers of sessions: places sessions, enforces timeouts and memory, leaves no process behind.

It is started, watched and ended like the supervisor of rewards (rlkit/rewarding/supervisor.py), and adopts orphans as that does. A session
stays with one worker. A worker that dies or is killed takes its own sessions with it and no others; the next session that opens starts
another worker where one is missing.

From the trainer:  (job, workers, sessions, load_timeout) first; then ("open", session, pickled row, seed), ("act", session, message),
                   ("finish", session), ("abort",)
To the trainer:    ("ready", kinds) or ("broken", message) first; then ("answer", session, answer), ("broken", message)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from rlkit.environments import worker
from rlkit.environments.base import EpisodeEnd, EpisodeFailure
from rlkit.environments.job import SessionJob
from rlkit.rewarding import processes
from rlkit.rewarding.supervisor import MEMORY_SECONDS, SWEEP_SECONDS, OrphanReaper, describe_exit, serve_trainer, stop_resource_tracker
from rlkit.runtime.processes import list_descendants

CALLS_TOGETHER = 32  # of sessions of one worker, where the environment is async
TICK_SECONDS = 0.05  # how often to look at timeouts
GRACE_SECONDS = 1.0  # an async worker enforces the timeouts itself, unless one of its calls blocks
END_SECONDS, KILL_SECONDS = 0.5, 5.0  # for a worker whose connection is closed to end by itself, and when it is killed
Post = Callable[[Any], None]


class SessionSlot:
    """One worker process, its sessions, and the two threads that read from it and write to it."""

    def __init__(self, work: SessionJob, post: Post) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: deque[tuple[Any, ...]] = deque()
        self.sessions: set[int] = set()
        self.in_flight: list[int] = []  # sessions, in the order of their calls
        self.loaded, self.together = False, 1
        self.dying, self.why = False, ""  # whether it was killed, and why
        self.heard = time.monotonic()  # when its last message came, or its first call was sent
        self._rounds = 0  # how often its last session has ended
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process = context.Process(target=worker.serve_sessions, args=(theirs, work, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self._threads = [
            threading.Thread(target=_read, args=(self, ours, os.pidfd_open(self.process.pid or 0), post), daemon=True),
            threading.Thread(target=_write, args=(ours, self._outgoing), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def calls(self) -> int:
        """As OrphanReaper counts: odd while there are sessions, which orphans seen meanwhile may belong to."""
        return 2 * self._rounds + bool(self.sessions)

    def call(self, message: tuple[Any, ...]) -> None:
        """Hand on a call of a session, message[0], when it is its turn."""
        self._waiting.append(message)
        self.advance()

    def advance(self) -> None:
        """Send what may be sent."""
        while self.loaded and self._waiting and len(self.in_flight) < self.together:
            if not self.in_flight:
                self.heard = time.monotonic()
            message = self._waiting.popleft()
            self.in_flight.append(message[0])
            self._outgoing.put(message)

    def forget(self, session: int) -> None:
        """The session is over."""
        self.sessions.discard(session)
        self._waiting = deque(message for message in self._waiting if message[0] != session)
        self._rounds += not self.sessions

    def abort(self) -> None:
        """Close all sessions, after the calls that are running."""
        self._waiting.clear()
        for session in self.sessions:
            self.call((session, "close"))

    def kill(self, why: str = "") -> None:
        """End the worker and all under it."""
        self.dying, self.why = True, self.why or why
        if self.process.pid and self.process.is_alive():  # else its number may be another process's by now
            below = list_descendants(self.process.pid)
            processes.kill([self.process.pid, *below])

    def describe_end(self) -> str:
        """Why the worker is gone."""
        self._outgoing.put(None)
        if not self._wait_for_end(END_SECONDS):
            self.kill("its worker process closed the connection to its supervisor")
            self._wait_for_end(KILL_SECONDS)
        return self.why or f"its worker process {describe_exit(self.process.exitcode)}"

    def _wait_for_end(self, seconds: float) -> bool:
        """Not by join, which waits for all forks of the worker."""
        until = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < until:
            time.sleep(0.002)
        return not self.process.is_alive()


def _read(slot: SessionSlot, connection: Connection, handle: int, post: Post) -> None:
    """Pass on what the worker sends. handle: of its process, whose end is the end here: forks may hold the connection and its sentinel."""
    with contextlib.suppress(Exception):  # EOFError, or whatever the code of an environment wrote to the descriptor
        while connection in wait([connection, handle]):
            post((slot, connection.recv()))
    os.close(handle)
    post((slot, ("ended",)))


def _write(connection: Connection, outgoing: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(OSError):  # the worker is gone: the reader sees that too
        while (message := outgoing.get()) is not None:
            connection.send(message)


class SessionTable:
    """All workers and sessions. Only the main thread uses it; everything that arrives is an event, (slot, message) or (None, message)."""

    def __init__(self, work: SessionJob, workers: int, sessions: int | None, load_timeout: float, send: Post) -> None:
        self._work, self._workers, self._most, self._load_timeout, self._send = work, workers, sessions, load_timeout, send
        self.events: queue.SimpleQueue[tuple[SessionSlot | None, Any]] = queue.SimpleQueue()
        self.slots: list[SessionSlot] = []
        self._places: dict[int, SessionSlot] = {}
        self._waiting: deque[tuple[Any, ...]] = deque()  # sessions to open
        self._reaper = OrphanReaper(self.slots, work.memory_gib)
        self._start_slot()

    def run(self) -> None:
        """Until the trainer closes the connection or ends."""
        looked = swept = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                slot, message = self.events.get(timeout=TICK_SECONDS)
                if message is None:
                    return
                if slot is None:
                    self._take_from_trainer(message)
                else:
                    self._take_from_worker(slot, message)
            now = time.monotonic()
            self._check_timeouts(now)
            if now - looked >= MEMORY_SECONDS:
                self._check_memory()
                looked = now
            if now - swept >= SWEEP_SECONDS:
                self._reaper.sweep()
                swept = now

    def end(self) -> None:
        """End all workers and every process that they started."""
        for slot in self.slots:
            slot.kill()
        self._reaper.kill_all()
        for slot in self.slots:
            slot.describe_end()
        self._reaper.kill_all()
        stop_resource_tracker()

    def _start_slot(self) -> SessionSlot:
        slot = SessionSlot(self._work, self.events.put)
        self.slots.append(slot)
        return slot

    def _take_from_trainer(self, message: tuple[Any, ...]) -> None:
        verb, *details = message
        if verb == "open":
            self._waiting.append((details[0], "open", *details[1:]))
            self._open_waiting()
        elif verb == "abort":
            self._waiting.clear()
            for slot in self.slots:
                slot.abort()
            self._places.clear()
        elif (place := self._places.get(details[0])) is not None:  # None: it has just failed, which the trainer will read
            place.call((details[0], verb, *details[1:]))

    def _open_waiting(self) -> None:
        while self._waiting and self._work.kinds is not None:
            if self._most is not None and sum(len(slot.sessions) for slot in self.slots) >= self._most:
                return
            message, living = self._waiting.popleft(), [slot for slot in self.slots if not slot.dying]
            slot = min(living, key=lambda slot: len(slot.sessions), default=None)
            if slot is None or (slot.sessions and len(living) < self._workers):
                slot = self._start_slot()
            slot.sessions.add(message[0])
            self._places[message[0]] = slot
            slot.call(message)

    def _take_from_worker(self, slot: SessionSlot, message: tuple[Any, ...]) -> None:
        slot.heard = time.monotonic()
        match message:
            case ("loaded", kinds):
                slot.loaded = True
                slot.together = CALLS_TOGETHER if any(kind.is_async for kind in kinds) else 1
                if self._work.kinds is None:
                    self._work = replace(self._work, kinds=kinds)
                    limits = [limit for limit in (self._most, *(kind.sessions for kind in kinds)) if limit is not None]
                    self._most = min(limits, default=None)
                    self._send(("ready", kinds))
                slot.advance()
                self._open_waiting()
            case ("answer", session, answer):
                slot.in_flight.remove(session)
                ended = answer is None or isinstance(answer, (EpisodeEnd, EpisodeFailure))
                if ended:
                    slot.forget(session)
                if session in self._places:  # not after an abort
                    self._send(message)
                    if ended:
                        del self._places[session]
                slot.advance()
                self._open_waiting()
            case ("refused", reason):
                self._send(("broken", reason))
            case ("spent",) if not slot.sessions:
                slot.kill()
            case ("ended",) if slot in self.slots:
                self._drop(slot)

    def _drop(self, slot: SessionSlot) -> None:
        """The worker is gone, and with it its sessions."""
        self.slots.remove(slot)
        why = slot.describe_end()
        if not slot.loaded and not slot.why:
            self._send(("broken", f"environment.path: the worker process {why.removeprefix('its worker process ')} while it was loaded"))
        for session in sorted(slot.sessions & self._places.keys()):
            del self._places[session]
            own = session in slot.in_flight
            failure = EpisodeFailure(why) if own else EpisodeFailure(f"another episode ended its worker: {why}", own=False)
            self._send(("answer", session, failure))
        self._open_waiting()

    def _check_timeouts(self, now: float) -> None:
        for slot in self.slots:
            silent = now - slot.heard
            if slot.dying:
                continue  # it is about to be dropped
            if not slot.loaded:
                if silent > self._load_timeout:
                    names = ", ".join(one.path for one in self._work.environments)
                    self._send(
                        ("broken", f"environment.path: loading {names} took more than {self._load_timeout:g} s (rewarding.load_timeout)")
                    )
                    slot.kill("it took too long to load")
            elif slot.in_flight and silent > self._work.timeout + (GRACE_SECONDS if slot.together > 1 else 0.0):
                slot.kill(f"no answer within {self._work.timeout:g} s; its worker was killed")

    def _check_memory(self) -> None:
        for slot in self.slots:
            if slot.process.pid and processes.measure_memory(slot.process.pid) > self._work.memory_gib * 2**30:
                slot.kill(f"its worker process used more memory than rewarding.memory_gib={self._work.memory_gib:g} allows")


def serve_environments(descriptor: int, trainer: int) -> None:
    """Serve one trainer (its process id) over the connected socket `descriptor` until the trainer closes it or ends."""
    serve_trainer(descriptor, trainer, _serve_connection)


def _serve_connection(connection: Connection, trainer_handle: int) -> None:
    outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_write, args=(connection, outgoing), daemon=True).start()
    work, workers, sessions, load_timeout = connection.recv()
    table = SessionTable(work, workers, sessions, load_timeout, outgoing.put)
    threading.Thread(target=_read_trainer, args=(connection, trainer_handle, table), daemon=True).start()
    try:
        table.run()
    finally:
        table.end()


def _read_trainer(connection: Connection, trainer_handle: int, table: SessionTable) -> None:
    with contextlib.suppress(EOFError, OSError):
        while connection in wait([connection, trainer_handle]):
            table.events.put((None, connection.recv()))
    table.events.put((None, None))
