"""What a program and all its processes use of the machine: a cgroup where one can be written, else looked at every 50 ms."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from rlkit.runtime.processes import list_descendants

POLL_SECONDS = 0.05
MAX_ENTRIES = 4096  # files and folders of a program in a folder on disk
GROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = {"memory", "pids"}
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class TreeLimits:
    """For all processes of a program together: bytes of memory, processes, bytes of files."""

    memory: int
    processes: int
    disk: int


def is_over(limits: TreeLimits, pid: int, own: int, folder: Path | None) -> bool:
    """Whether the processes under `pid`, without its first `own` descendants, or the files in the folder are beyond the limits."""
    pids = list_descendants(pid)[own:]
    if len(pids) > limits.processes or (folder is not None and _is_folder_over(folder, limits.disk)):
        return True
    return sum(map(_read_resident, pids)) > limits.memory and sum(map(_read_proportional, pids)) > limits.memory


def _read_resident(pid: int) -> int:
    """Bytes in memory; pages that processes share count in each of them."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _read_proportional(pid: int) -> int:
    """The same, with the part of each shared page that is this process's; where it cannot be read, as if nothing were shared."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return _read_resident(pid)


def _is_folder_over(folder: Path, limit: int) -> bool:
    size = count = 0
    folders = [str(folder)]
    while folders:
        try:
            for entry in os.scandir(folders.pop()):
                count += 1
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:  # a path that is too long, or a folder that hides what it holds
            return True
        if count > MAX_ENTRIES or size > limit:
            return True
    return False


def find_group_parent(groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """The cgroup (version 2) below which this process may create one that limits memory: its own, or the one above. None: nowhere."""
    with contextlib.suppress(OSError):
        line = next((line for line in own.read_text().splitlines() if line.startswith("0::")), None)
        if line is None:
            return None
        group = groups / line[3:].lstrip("/")
        for parent in (group, group.parent):
            given = parent / "cgroup.subtree_control"
            if parent.is_relative_to(groups) and given.is_file() and given.read_text().split() and os.access(parent, os.W_OK):
                # Who moves a process needs the list of processes of the group that its old and its new group have in common.
                joins = os.access(parent / "cgroup.procs", os.W_OK)
                return parent if joins and set(given.read_text().split()) >= CONTROLLERS else None
    return None


class MemoryGroup:
    """A cgroup of its own for the programs of one sandbox; whoever writes to `descriptor` joins it."""

    def __init__(self, parent: Path, limits: TreeLimits) -> None:
        self._folder = parent / f"rlkit-{uuid.uuid4().hex[:12]}"
        self._folder.mkdir()
        try:
            self.descriptor = self._limit(limits)
        except OSError:
            self._folder.rmdir()
            raise

    def _limit(self, limits: TreeLimits) -> int:
        bounds = {"memory.max": limits.memory, "memory.swap.max": 0, "memory.oom.group": 1, "pids.max": limits.processes}
        for name, bound in bounds.items():
            if (self._folder / name).exists():  # a kernel without swap has no file for it
                (self._folder / name).write_text(str(bound))
        return os.open(self._folder / "cgroup.procs", os.O_WRONLY)

    def close(self) -> None:
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            (self._folder / "cgroup.kill").write_text("1")
        with contextlib.suppress(OSError):  # a process that is still ending: the folder stays, and is empty
            self._folder.rmdir()
