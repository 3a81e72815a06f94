"""With this folder on PYTHONPATH, a rank halts as a phase begins, or later, as the file named by RLKIT_HALT says: PHASE COUNT RANK SECONDS.

It writes its process id (and `waits` or `stopped`) into FILE.halted, and goes on when somebody removes that; where it is to halt SECONDS
after the phase began, it stops itself by a signal, wherever it then is. COUNT is of this process. A rank that starts when FILE is not
there does not halt.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PATIENCE = 60.0


def announce(file: Path, how: str) -> Path:
    new = file.with_suffix(".new")
    new.write_text(f"{os.getpid()} {how}")
    return new.rename(file.with_suffix(".halted"))


def stop(file: Path) -> None:
    announce(file, "stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


def halt(file: Path, seconds: float) -> None:
    if seconds:
        threading.Timer(seconds, stop, [file]).start()
        return
    halted = announce(file, "waits")
    until = time.monotonic() + PATIENCE
    while halted.exists() and time.monotonic() < until:
        time.sleep(0.02)


if "rlkit.run" in sys.orig_argv and (file := Path(os.environ.get("RLKIT_HALT", "/nowhere"))).is_file():
    phase, count, rank, seconds = file.read_text().split()
    if os.environ.get("RANK") == rank:
        from struck import at_phase

        at_phase(phase, int(count), lambda: halt(file, float(seconds)))
