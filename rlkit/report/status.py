"""status.json: the state of a run for somebody outside it. A run writes it; a reader finds out whether the process is still there.

States: running; done; stopped (it can be resumed); failed; and for the reader alone lost: it was running, and its process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

STATUS = "status.json"
BEAT_SECONDS = 10.0  # between two writes of a run whose state does not change
SILENT_SECONDS = 90.0  # a run of another machine is lost after so long without a write


@dataclass(frozen=True)
class RunStatus:
    """State of a run. `started`, `updated`, `process_started`: Unix seconds."""

    state: str
    steps: int
    step: int = 0  # the last finished one
    phase: str = ""
    why: str | None = None  # the first line of the message with which it ended
    attempt: int = 1
    started: float = 0.0  # of this attempt
    updated: float = 0.0
    host: str = ""
    boot: str = ""  # of the host: differs after each start of its kernel
    pid: int = 0
    process_started: float = 0.0  # a process id is used again


def describe_process() -> dict[str, Any]:
    """The fields of a RunStatus that identify this process."""
    own = psutil.Process()
    return {"host": socket.gethostname(), "boot": read_boot_id(), "pid": own.pid, "process_started": own.create_time()}


def read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_run_status(folder: Path, status: RunStatus) -> None:
    """Replaces status.json as a whole. It does not wait for the disk. Raises OSError."""
    temporary = folder / f".{STATUS}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(status), indent=2) + "\n")
    temporary.replace(folder / STATUS)


def read_run_status(folder: Path, now: float | None = None) -> RunStatus | None:
    """The state of the run in a folder; None where none has written a whole status.json. now: Unix seconds (default: the clock)."""
    try:
        written = json.loads((folder / STATUS).read_text())
        status = RunStatus(**{field.name: written[field.name] for field in fields(RunStatus)})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if status.state != "running" or (why := explain_lost(status, time.time() if now is None else now)) is None:
        return status
    return replace(status, state="lost", why=why)


def explain_lost(status: RunStatus, now: float) -> str | None:
    """Why a run whose state is running is lost; None where it may be."""
    if status.host != socket.gethostname():
        silent = now - status.updated
        return f"nothing was heard from {status.host} for {silent:.0f} s" if silent > SILENT_SECONDS else None
    if status.boot != read_boot_id():
        return "the machine was restarted"
    try:
        alive = abs(psutil.Process(status.pid).create_time() - status.process_started) < 1.0
        alive = alive and psutil.Process(status.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        alive = False
    return None if alive else f"its process {status.pid} is gone: killed, or out of memory"
