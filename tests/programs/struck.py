"""rlkit.run, struck by a signal as a phase begins: struck.py SIGNAL PHASE COUNT arguments...

The COUNT-th time that PHASE begins, this process sends itself SIGNAL; phases are those of rlkit.runtime.timer, and `reward`, which begins
when the first verdicts of a step are waited for.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable


def at_phase(phase: str, count: int, action: Callable[[], None]) -> None:
    """From now on: the `count`-th time that the phase begins in this process, the action."""
    from rlkit.rewarding.client import RewardClient
    from rlkit.runtime import heartbeat

    seen = 0

    def passed(name: str | None) -> None:
        nonlocal seen
        seen += name == phase
        if name == phase and seen == count:
            action()

    beat, collected = heartbeat.beat, RewardClient.collect

    def watched_beat(name: str | None = None, step: int | None = None) -> None:
        beat(name, step)
        passed(name)

    def watched_collect(self: RewardClient, keys: object) -> object:
        passed("reward")
        return collected(self, keys)

    heartbeat.beat = watched_beat
    RewardClient.collect = watched_collect


def strike(number: int) -> None:
    print(f"struck at {time.time()}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    from rlkit import run

    at_phase(sys.argv[2], int(sys.argv[3]), lambda: strike(signal.Signals[sys.argv[1]]))
    run.exit_process(run.main(sys.argv[4:]))
