"""With this folder on PYTHONPATH, a rank halts as a phase begins, as the file that RLKIT_HALT names says: PHASE COUNT RANK.

It writes its process id into FILE.halted, and goes on when somebody removes that. COUNT is of this process. A rank that starts when FILE
is not there does not halt.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PATIENCE = 60.0


def halt(file: Path) -> None:
    halted, new = file.with_suffix(".halted"), file.with_suffix(".new")
    new.write_text(str(os.getpid()))
    new.rename(halted)
    until = time.monotonic() + PATIENCE
    while halted.exists() and time.monotonic() < until:
        time.sleep(0.02)


if "rlkit.run" in sys.orig_argv and (file := Path(os.environ.get("RLKIT_HALT", "/nowhere"))).is_file():
    phase, count, rank = file.read_text().split()
    if os.environ.get("RANK") == rank:
        from struck import at_phase

        at_phase(phase, int(count), lambda: halt(file))
