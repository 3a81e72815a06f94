"""Signs of life for a launcher: what this process does, and on request where all its threads are.

A launcher names in the environment a pipe, RLKIT_HEARTBEAT (a descriptor that this process inherits), and a file, RLKIT_STACKS. On the
pipe goes a line `STEP PHASE` as a phase begins and as work inside it gets done; SIGUSR2 writes the stacks of all threads into the file,
even while the main thread is deep in a library. Without a launcher nothing here does anything.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time

PIPE_VARIABLE, STACKS_VARIABLE = "RLKIT_HEARTBEAT", "RLKIT_STACKS"
STACKS_SIGNAL = signal.SIGUSR2
MIN_INTERVAL = 0.5  # seconds between two signs of the same phase


class _Heartbeat:
    pipe: int | None = None
    step, phase = 0, "starting"
    last = 0.0


def start_heartbeat() -> None:
    """Takes up what the environment names; once, in the main thread."""
    if named := os.environ.pop(PIPE_VARIABLE, None):
        _Heartbeat.pipe = int(named)
        os.set_inheritable(_Heartbeat.pipe, False)  # the reward workers are not this process
        os.set_blocking(_Heartbeat.pipe, False)  # a launcher that does not read must not stop the run
    if place := os.environ.pop(STACKS_VARIABLE, None):
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        faulthandler.register(STACKS_SIGNAL, file=handle, all_threads=True)


def beat(phase: str | None = None, step: int | None = None) -> None:
    """A phase or a step began, or, without a name, work got done."""
    if _Heartbeat.pipe is None:
        return
    now = time.monotonic()
    if phase is None and step is None and now - _Heartbeat.last < MIN_INTERVAL:
        return
    _Heartbeat.phase = _Heartbeat.phase if phase is None else phase
    _Heartbeat.step = _Heartbeat.step if step is None else step
    _Heartbeat.last = now
    with contextlib.suppress(OSError):  # full, or nobody there any more
        os.write(_Heartbeat.pipe, f"{_Heartbeat.step} {_Heartbeat.phase}\n".encode())
