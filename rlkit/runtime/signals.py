"""Stop signals: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (the warning of a scheduler) and SIGHUP (the terminal is closed).

Before training starts a signal ends the run at once. During training it is stored, and the loop checks for it where nothing is lost. The
same signal a second time ends the process at once. A different one does not: a scheduler warns with one signal and stops with the next.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from rlkit.errors import EXIT_STOPPED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED_BEFORE_TRAINING = "stopped by {} before training started; run the same command to start again"
ENDED_AT_ONCE = b"rlkit: second signal, ended at once; unsaved work is lost, the run continues from its last checkpoint\n"


def exit_on_signal() -> None:
    """Makes the signals end the process at once: for the time in which it has nothing to save and no child processes."""

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{STOPPED_BEFORE_TRAINING.format(signal.Signals(number).name)}\n".encode())
        os._exit(EXIT_STOPPED)

    install_handler(leave)


def install_handler(handler: Callable[[int, FrameType | None], None]) -> None:
    """Installs a handler for SIGNALS, in the main thread. SIGHUP stays ignored where it is (nohup: the run outlives its terminal)."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class StopRequest:
    """Stores that a stop was requested."""

    def __init__(self) -> None:
        self.requested = False
        self._seen: set[int] = set()
        self.deferred = False  # True: the loop checks `requested`; False: a signal raises Stopped at once

    def install(self) -> None:
        install_handler(self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and number in self._seen:
            return  # the terminal sends it, then the shell: not a second request
        if number in self._seen:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, ENDED_AT_ONCE)
            os._exit(EXIT_STOPPED)
        self._seen.add(number)
        self.requested = True
        if not self.deferred:
            raise Stopped(STOPPED_BEFORE_TRAINING.format(signal.Signals(number).name))
