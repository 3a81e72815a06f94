"""rlkit.run in an address space that ends so many MiB above what is in use: starved.py (trial|alone|update) MIB arguments...

trial: while the largest micro-batch is tried; alone: at the beginning of that, in the second process only, and processes wait 10 s for
each other; update: from the second update of the run on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from rlkit import run
from rlkit.runtime import ranks
from rlkit.updates import micro_batch_fit
from rlkit.updates.online_update import OnlineUpdater

M_MMAP_THRESHOLD = -3  # of malloc.h


def starve() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))


calls: list[int] = []
fitted, update = micro_batch_fit.largest_micro_batch, OnlineUpdater.update


def in_little_room(*given: Any, **named: Any) -> Any:
    starve()
    found = fitted(*given, **named)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return found


def run_out(*given: Any) -> None:
    """A trial that ends at its first tensor, before anything that the other process waits for."""
    starve()
    try:
        torch.empty(4 * int(sys.argv[2]) * 2**20, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def second_update(*given: Any) -> Any:
    calls.append(1)
    if len(calls) == 2:
        starve()
    return update(*given)


ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # what is freed goes back: the heap keeps no room that the limit would not see
if sys.argv[1] == "alone":
    ranks.BARRIER_TIMEOUT = timedelta(seconds=10)
    if os.environ["RANK"] == "1":
        micro_batch_fit.try_beside_update = run_out
elif sys.argv[1] == "trial":
    micro_batch_fit.largest_micro_batch = in_little_room
elif sys.argv[1] == "update":
    OnlineUpdater.update = second_update  # type: ignore[method-assign]
run.exit_process(run.main(sys.argv[3:]))
