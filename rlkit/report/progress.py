"""How far the current phase is, as one line; and a thread that asks for it each second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rlkit.report.console import format_duration
from rlkit.runtime.heartbeat import Progress

TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Phase:
    """What the run does since `begun` (of time.monotonic)."""

    name: str
    begun: float

    def format(self, progress: Progress, now: float | None = None) -> str:
        """`rollout 0:30  45/64 samples  tokens/s 4,210  eta 0:13`; the name alone before its first second is over."""
        seconds = (time.monotonic() if now is None else now) - self.begun
        fields = [f"{self.name} {format_duration(int(seconds))}" if seconds >= 1.0 else self.name]
        if progress.total:
            fields.append(f"{progress.done:,}/{progress.total:,} {progress.unit}")
        if progress.tokens and seconds > 0:
            fields.append(f"tokens/s {progress.tokens / seconds:,.0f}")
        if 0 < progress.done < progress.total:
            fields.append(f"eta {format_duration(seconds * (progress.total - progress.done) / progress.done)}")
        return "  ".join(fields)


class Ticker:
    """Calls `action` each second in a thread, until it is stopped. It ends with the process."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rlkit-report", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when no call is under way; a second call does nothing."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self._action()
