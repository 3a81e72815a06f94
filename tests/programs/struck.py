"""rlkit.run, struck by a signal as a phase begins: struck.py SIGNAL PHASE COUNT arguments...

The COUNT-th time that PHASE begins, this process sends itself SIGNAL; phases are those of rlkit.clock, and `reward`, which begins when
the first verdicts of a step are waited for.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from rlkit import clock, run
from rlkit.rewarding.judge import Judge

number, phase, count = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
seen = 0


def passed(name: str) -> None:
    global seen
    seen += name == phase
    if name == phase and seen == count:
        print(f"struck at {time.time()}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)


called, collected = clock.Clock.__call__, Judge.collect


def watched_phase(self: clock.Clock, name: str) -> object:
    passed(name)
    return called(self, name)


def watched_collect(self: Judge, keys: object) -> object:
    passed("reward")
    return collected(self, keys)


clock.Clock.__call__ = watched_phase
Judge.collect = watched_collect
code = run.main(sys.argv[4:])
run.leave(code)
