"""What a program and all its processes use of the machine: a cgroup where one can be written, else looked at every 50 ms."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rlkit.runtime.processes import list_descendants

POLL_SECONDS = 0.05
MAX_ENTRIES = 4096  # files and folders of a program in a folder on disk
GROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = {"memory", "pids"}
DELEGATED = ("user.delegate", "trusted.delegate")  # attributes by which systemd marks the group of a unit with Delegate=
END_SECONDS = 5.0  # for killed processes to leave a group
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
    """The cgroup (version 2) below which this process may create groups that limit memory; None: nowhere.

    It is the group above its own: one that has processes limits no groups below it, except for the kernel's root. And it must be delegated:
    what is above other units is systemd's, and a program there is outside the limits of its unit. Source: systemd.io/CGROUP_DELEGATION.
    """
    with contextlib.suppress(OSError):
        line = next((line for line in own.read_text().splitlines() if line.startswith("0::")), None)
        if line is None:
            return None
        group = groups / line[3:].lstrip("/")
        parent = group if group == groups else group.parent
        marked = _is_delegated(parent)
        offered = parent / ("cgroup.controllers" if marked else "cgroup.subtree_control")
        # Who moves a process needs the list of processes of the group that its old and its new group have in common.
        writable = os.access(parent, os.W_OK) and os.access(parent / "cgroup.procs", os.W_OK)
        if writable and (marked or parent == groups) and set(offered.read_text().split()) >= CONTROLLERS:
            return parent
    return None


def _is_delegated(group: Path) -> bool:
    for name in DELEGATED:
        with contextlib.suppress(OSError):
            return os.getxattr(group, name) == b"1"
    return False


class MemoryGroup:
    """A cgroup of its own for the programs of one sandbox; whoever writes to `descriptor` joins it."""

    def __init__(self, parent: Path, limits: TreeLimits) -> None:
        """Raises OSError where it cannot be created, limited or joined."""
        remove_abandoned_groups(parent)
        self._folder = parent / f"rlkit-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._folder.mkdir()
        try:
            self._limit(limits)
            self.descriptor = os.open(self._folder / "cgroup.procs", os.O_WRONLY)
        except OSError:
            self._folder.rmdir()
            raise

    def _limit(self, limits: TreeLimits) -> None:
        control = self._folder.parent / "cgroup.subtree_control"
        if not set(control.read_text().split()) >= CONTROLLERS:  # systemd leaves this to whom it delegates a group
            _write(control, " ".join(f"+{name}" for name in sorted(CONTROLLERS)))
        if (self._folder / "memory.swap.max").exists():  # not on a kernel without swap
            _write(self._folder / "memory.swap.max", "0")
        for name, bound in {"memory.max": limits.memory, "memory.oom.group": 1, "pids.max": limits.processes}.items():
            _write(self._folder / name, str(bound))

    def close(self) -> None:
        os.close(self.descriptor)
        with contextlib.suppress(OSError):  # kernels before 5.14
            _write(self._folder / "cgroup.kill", "1")
        until = time.monotonic() + END_SECONDS
        while not _remove(self._folder) and time.monotonic() < until:  # a killed process takes a moment to end
            time.sleep(0.002)


def remove_abandoned_groups(parent: Path) -> None:
    """Remove the groups of processes that were killed before they could do it. One that still has processes stays, until the next call."""
    for folder in parent.glob("rlkit-[0-9]*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not _read_resident(int(pid)):  # it has ended; its parent may not have noticed yet
            _remove(folder)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    """Into a file that is there: none is created, as the kernel creates none in a group."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
