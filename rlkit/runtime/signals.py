"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (a scheduler's warning) and SIGHUP (the terminal is gone).

Before training starts a signal ends the run where it stands. While it trains, the signal is remembered and the loop looks for it at
places where nothing is lost. The same signal again ends the process at once; another one does not: a scheduler warns by one and
stops by the next.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from rlkit.errors import EXIT_STOPPED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED_BEFORE_TRAINING = "stopped by {} before training started; the same command starts again"
ENDED_AT_ONCE = b"rlkit: asked again, ended at once; what was not saved yet is lost, the run goes on from its last checkpoint\n"


def exit_on_signal() -> None:
    """Has the signals end the process where it stands: for a time in which it has nothing to save and has started nobody."""

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{STOPPED_BEFORE_TRAINING.format(signal.Signals(number).name)}\n".encode())
        os._exit(EXIT_STOPPED)

    install_handler(leave)


def install_handler(handler: Callable[[int, FrameType | None], None]) -> None:
    """Main thread only. SIGHUP stays ignored where it is (nohup: the run outlives its terminal)."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class StopRequest:
    """Remembers that somebody asked."""

    def __init__(self) -> None:
        self.requested = False
        self._seen: set[int] = set()
        self.deferred = False  # True: the loop looks; False: a signal raises where it strikes

    def install(self) -> None:
        install_handler(self._struck)

    def _struck(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and number in self._seen:
            return  # the terminal says so, and then its shell: nobody asks again by it
        if number in self._seen:
            with contextlib.suppress(OSError):  # a terminal that is gone takes nothing
                os.write(2, ENDED_AT_ONCE)
            os._exit(EXIT_STOPPED)
        self._seen.add(number)
        self.requested = True
        if not self.deferred:
            raise Stopped(STOPPED_BEFORE_TRAINING.format(signal.Signals(number).name))
