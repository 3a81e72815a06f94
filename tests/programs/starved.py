"""rlkit.run in an address space that ends so many MiB above what is in use: starved.py (trial|update) MIB arguments...

trial: while the largest micro-batch is tried; update: from the second update of the run on.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

from rlkit import online, room, run


def starve() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))


calls: list[int] = []
fitted, update = room.fitted, online.update


def in_little_room(*given: Any, **named: Any) -> Any:
    starve()
    found = fitted(*given, **named)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return found


def second_update(*given: Any) -> Any:
    calls.append(1)
    if len(calls) == 2:
        starve()
    return update(*given)


if sys.argv[1] == "trial":
    room.fitted = in_little_room
else:
    online.update = second_update
run.leave(run.main(sys.argv[3:]))
