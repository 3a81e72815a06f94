"""With this folder on PYTHONPATH, a rank halts once as a phase begins: RLKIT_HALT="PHASE COUNT RANK FILE".

It writes its process id into FILE, and goes on when somebody removes FILE; if FILE.done is there, it has halted before and does not again.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PATIENCE = 60.0


def halt(file: Path) -> None:
    file.with_suffix(".done").touch()
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").rename(file)
    until = time.monotonic() + PATIENCE
    while file.exists() and time.monotonic() < until:
        time.sleep(0.02)


if os.environ.get("RLKIT_HALT") and "rlkit.run" in sys.orig_argv:
    phase, count, rank, place = os.environ["RLKIT_HALT"].split()
    if os.environ.get("RANK") == rank and not Path(place).with_suffix(".done").exists():
        from struck import at_phase

        at_phase(phase, int(count), lambda: halt(Path(place)))
