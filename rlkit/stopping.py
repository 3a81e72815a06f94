"""Being asked to stop: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (a scheduler's warning).

Before training starts a signal ends the run where it stands. While it trains, the signal is remembered and the loop looks for it at
places where nothing is lost. The same signal again ends the process at once; another one does not: a scheduler warns by one and
stops by the next.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from rlkit.errors import EXIT_STOPPED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopping:
    """Remembers that somebody asked."""

    def __init__(self) -> None:
        self.requested = False
        self._seen: set[int] = set()
        self.deferred = False  # True: the loop looks; False: a signal raises where it strikes

    def install(self) -> None:
        """Takes the signals over; main thread only."""
        for number in SIGNALS:
            signal.signal(number, self._struck)

    def _struck(self, number: int, frame: FrameType | None) -> None:
        if number in self._seen:
            os._exit(EXIT_STOPPED)
        self._seen.add(number)
        self.requested = True
        if not self.deferred:
            raise Stopped(f"stopped by {signal.Signals(number).name} before training started; the same command starts again")
