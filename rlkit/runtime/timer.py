"""The time of a step by phase. Phases do not overlap. A checkpoint is written after the row of its step: the next row has its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlkit.runtime import heartbeat

# In the order of a step. Other times (the latency of a reward) are inside a phase or beside it and do not add up.
CHECKPOINT = "checkpoint"
PHASES = ("sync", "rollout", "resume", "read", "observe", "update", "evaluation", CHECKPOINT)


class PhaseTimer:
    """Seconds by phase, one of PHASES, since the last `restart`. `announce` is called as a phase begins."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.phase = ""  # the last one that began
        self._phases: dict[str, float] = {}
        self.restart()

    def restart(self, step: int | None = None) -> None:
        heartbeat.beat(step=step)
        self._start = time.perf_counter()
        self._written = {name: seconds for name, seconds in self._phases.items() if name == CHECKPOINT}
        self._phases = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name not in PHASES:
            raise ValueError(f"{name!r} is not a phase of a step; valid: {', '.join(PHASES)}")
        self._announce(name)
        heartbeat.beat(name)
        self.phase = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds since the last restart."""
        return time.perf_counter() - self._start

    def metrics(self) -> dict[str, float]:
        """time/<phase>, and time/step for the whole step. time/checkpoint: of the one before this step, not a part of time/step."""
        return {f"time/{name}": seconds for name, seconds in (self._written | self._phases).items()} | {"time/step": self.seconds}
