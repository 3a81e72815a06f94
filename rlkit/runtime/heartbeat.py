"""Heartbeats for a launcher: the phase of this process, and on request the stacks of all its threads.

A launcher sets two environment variables: RLKIT_HEARTBEAT, a pipe (a descriptor that this process inherits), and RLKIT_STACKS, a file. A
line `STEP PHASE` goes to the pipe when a phase begins and while it makes progress. SIGUSR2 writes the stacks of all threads to the file,
even while the main thread is inside a library. Without a launcher these functions do nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time

PIPE_VARIABLE, STACKS_VARIABLE = "RLKIT_HEARTBEAT", "RLKIT_STACKS"
STACKS_SIGNAL = signal.SIGUSR2
MIN_INTERVAL = 0.5  # seconds between two heartbeats of the same phase


class _Heartbeat:
    pipe: int | None = None
    step, phase = 0, "starting"
    last = 0.0


def start_heartbeat() -> None:
    """Reads the two environment variables. Call it once, in the main thread."""
    if named := os.environ.pop(PIPE_VARIABLE, None):
        _Heartbeat.pipe = int(named)
        os.set_inheritable(_Heartbeat.pipe, False)  # reward workers must not inherit it
        os.set_blocking(_Heartbeat.pipe, False)  # a launcher that does not read must not block the run
    if path := os.environ.pop(STACKS_VARIABLE, None):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        faulthandler.register(STACKS_SIGNAL, file=handle, all_threads=True)


def beat(phase: str | None = None, step: int | None = None) -> None:
    """Reports that a phase or a step began or, without arguments, that work was done."""
    if _Heartbeat.pipe is None:
        return
    now = time.monotonic()
    if phase is None and step is None and now - _Heartbeat.last < MIN_INTERVAL:
        return
    _Heartbeat.phase = _Heartbeat.phase if phase is None else phase
    _Heartbeat.step = _Heartbeat.step if step is None else step
    _Heartbeat.last = now
    with contextlib.suppress(OSError):  # the pipe is full, or the launcher is gone
        os.write(_Heartbeat.pipe, f"{_Heartbeat.step} {_Heartbeat.phase}\n".encode())
