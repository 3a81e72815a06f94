"""The process tree of this machine, read from /proc. Standard library only: launch.ray sends this module to nodes that may lack rlkit."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path


def list_children() -> dict[int, list[tuple[int, int]]]:
    """{pid: [(pid of a child, its session), ...]} of all processes, zombies included."""
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process ended in the meantime
                # pid (name) state ppid pgrp session ...: the name may contain spaces and brackets
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                children[int(fields[1])].append((int(entry.name), int(fields[3])))
    return children


def list_descendants(pid: int, children: Mapping[int, Sequence[tuple[int, int]]] | None = None) -> list[int]:
    """All processes under `pid`, parents before their children. children: as of list_children, which looks at every process otherwise."""
    children, found = list_children() if children is None else children, [pid]
    for parent in found:
        found.extend(child for child, _ in children.get(parent, []))
    return found[1:]
