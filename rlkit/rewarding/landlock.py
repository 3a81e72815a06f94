"""The sandbox of Landlock and seccomp, for kernels and containers that refuse user namespaces.

A program in it opens no files but the system's, Python's and those of its own folder, has no sockets, and sends signals to its own
processes alone. It can see that other files exist, how large they are and when they were written, not what is in them. On kernels before
6.12, where Landlock does not hold signals, it can start threads but no processes.
"""

from __future__ import annotations

import contextlib
import os
import signal

from rlkit.rewarding import kernel
from rlkit.rewarding.kernel import EXECUTE, READ_DIR, READ_FILE, SCOPES_SINCE, WRITE_FILE

DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/zero": READ_FILE, "/dev/urandom": READ_FILE}
EVERYTHING = kernel.ALL_BY_ABI[5]  # what the kernel does not know of it is left out
FIRST_USER, USERS = 60_000, 5_000  # users that nobody is, below the 65,536 of a container: each sandbox of root takes one
CHOWN, SETGID, SETUID = 1 << 0, 1 << 6, 1 << 7  # linux/capability.h


class Landlock:
    """Restricts the programs of one sandbox; the methods are called in their order, by the process that runs the programs."""

    def __init__(self, readable: list[str], links: dict[str, str], place: str, abi: int) -> None:
        """place: an empty folder."""
        self.readable, self.links, self.place, self.abi = readable, links, place, abi
        self.packages, self.folder, self.count = f"{place}/packages", "", 0
        self.user = _choose_user([*readable, *links.values(), place])
        self.has_own_user = self.user is not None
        self.program = 0  # set by the caller once it has started

    def enter(self) -> None:
        os.mkdir(self.packages)
        for name, path in self.links.items():
            os.symlink(path, f"{self.packages}/{name}")
        os.chmod(self.place, 0o711)
        kernel.forbid_privileges()
        if self.abi >= SCOPES_SINCE:
            kernel.libc.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            kernel.restrict_signals()
            _check_signals_stay_inside()

    def renew_folder(self) -> None:
        """An empty writable folder for the next program."""
        if self.folder:
            remove_folder(self.folder)
        self.count += 1
        self.folder = f"{self.place}/{self.count}"
        os.mkdir(self.folder)
        if self.user is not None:
            os.chown(self.folder, self.user, self.user)

    def confine(self) -> None:
        """In the process of the program."""
        if self.user is not None:
            os.setgroups([])
            os.setresgid(self.user, self.user, self.user)
            os.setresuid(self.user, self.user, self.user)
        kernel.forbid_privileges()
        kernel.drop_capabilities()
        read = EXECUTE | READ_FILE | READ_DIR
        rights = {path: read for path in (*self.readable, *self.links.values(), self.packages) if os.path.exists(path)}
        kernel.restrict_files(self.abi, {**rights, **DEVICES, self.folder: EVERYTHING})

    def kill_programs(self) -> None:
        """All processes of the program at once: the kernel delivers this signal in this process's Landlock domain alone."""
        if self.abi >= SCOPES_SINCE:
            _check_signals_stay_inside()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
            if self.abi >= SCOPES_SINCE:
                os.kill(-1, signal.SIGKILL)
            elif self.program:
                os.kill(self.program, signal.SIGKILL)

    def remove(self) -> None:
        """What is left on disk."""
        remove_folder(self.place)


def remove_folder(folder: str) -> None:
    """However deep it is, and whatever its modes are."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
        if os.path.lexists(folder):
            program = os.posix_spawnp(command[0], [*command, folder], {"PATH": "/usr/bin:/bin"}, file_actions=_SILENT)
            os.waitpid(program, 0)


_SILENT = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)]


def _check_signals_stay_inside() -> None:
    """Raises OSError where a signal could reach the parent of this process: then none is sent to all."""
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise OSError("Landlock: it does not hold signals")


def _choose_user(paths: list[str]) -> int | None:
    """A user of its own, where this process may become it and it can reach these paths; else the program stays the user that it is."""
    if os.getuid() != 0 or not _has_capabilities(CHOWN | SETGID | SETUID):
        return None
    ancestors = {ancestor for path in paths for ancestor in _list_ancestors(os.path.realpath(path))}
    if not all(os.stat(ancestor).st_mode & 0o001 for ancestor in ancestors):
        return None
    return FIRST_USER + os.getpid() % USERS


def _list_ancestors(path: str) -> list[str]:
    parts = path.split("/")[1:-1]
    return ["/".join(["", *parts[:count]]) or "/" for count in range(len(parts) + 1)]


def _has_capabilities(wanted: int) -> bool:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    return int(line.split()[1], 16) & wanted == wanted
