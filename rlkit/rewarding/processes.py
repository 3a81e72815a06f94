"""The few Linux calls that keep worker processes in hand: who descends from whom, and who dies with whom."""

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
    """Orphans among this process's descendants become its own children, instead of init's."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends, however it ends; at once if `parent` is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def children_of() -> dict[int, list[tuple[int, int]]]:
    """(pid, session) of the children of every process, zombies included."""
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                # pid (name) state ppid pgrp session ...: the name may hold spaces and brackets
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                children[int(fields[1])].append((int(entry.name), int(fields[3])))
    return children


def descendants(pid: int) -> list[int]:
    """Every process under `pid`, parents before their children."""
    children, found = children_of(), [pid]
    for parent in found:
        found.extend(child for child, _ in children[parent])
    return found[1:]


def kill(pids: Iterable[int]) -> None:
    """Kill these processes. No error for one that is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap(pids: Iterable[int], seconds: float = 2.0) -> None:
    """Take the exit status of those of these processes that are children of ours and have ended, waiting for them a little."""
    until = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(0.001)


def has_children() -> bool:
    """Whether this process has any child, zombies included: one system call."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False
