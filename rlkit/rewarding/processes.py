"""Linux calls to control worker processes: list descendants, kill them, and end together with a parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans among the descendants of this process become its children instead of those of init."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; at once if `parent` is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def list_children() -> dict[int, list[tuple[int, int]]]:
    """The children (pid, session) of every process, zombies included, by its pid."""
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                # pid (name) state ppid pgrp session ...: the name may hold spaces and brackets
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                children[int(fields[1])].append((int(entry.name), int(fields[3])))
    return children


def list_descendants(pid: int) -> list[int]:
    """All descendants of `pid`, parents before their children."""
    children, found = list_children(), [pid]
    for parent in found:
        found.extend(child for child, _ in children[parent])
    return found[1:]


def kill(pids: Iterable[int]) -> None:
    """Kill these processes. No error for one that is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap(pids: Iterable[int], seconds: float = 2.0) -> None:
    """Collect the exit status of those of these processes that are our children; wait up to `seconds` in total until they end."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)


def has_children() -> bool:
    """Whether this process has any child, zombies included: one system call."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False
