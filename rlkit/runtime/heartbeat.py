"""The heartbeat of this process: how far its phase is, and for a launcher the phase, and on request the stacks of all threads.

A launcher sets two environment variables: RLKIT_HEARTBEAT, a pipe (a descriptor that this process inherits), and RLKIT_STACKS, a file. A
line `STEP PHASE` goes to the pipe when a phase begins and while it makes progress. SIGUSR2 writes the stacks of all threads to the file,
even while the main thread is inside a library.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from dataclasses import dataclass

PIPE_VARIABLE, STACKS_VARIABLE = "RLKIT_HEARTBEAT", "RLKIT_STACKS"
STACKS_SIGNAL = signal.SIGUSR2
MIN_INTERVAL = 0.5  # seconds between two heartbeats of the same phase


@dataclass(frozen=True)
class Progress:
    """How far a phase is: `done` of `total`, and the tokens of what is done."""

    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0


class _Heartbeat:
    pipe: int | None = None
    progress = Progress()
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


def advance(done: int, total: int, unit: str, tokens: int = 0) -> None:
    """Reports how far the phase is."""
    _Heartbeat.progress = Progress(done, total, unit, tokens)
    beat()


def read_progress() -> tuple[int, Progress]:
    """The step, and what was reported last in the phase."""
    return _Heartbeat.step, _Heartbeat.progress


def beat(phase: str | None = None, step: int | None = None) -> None:
    """Reports that a phase or a step began or, without arguments, that work was done."""
    if phase is not None:
        _Heartbeat.phase, _Heartbeat.progress = phase, Progress()
    if step is not None:
        _Heartbeat.step = step
    now = time.monotonic()
    if _Heartbeat.pipe is None or (phase is None and step is None and now - _Heartbeat.last < MIN_INTERVAL):
        return
    _Heartbeat.last = now
    with contextlib.suppress(OSError):  # the pipe is full, or the launcher is gone
        os.write(_Heartbeat.pipe, f"{_Heartbeat.step} {_Heartbeat.phase}\n".encode())
