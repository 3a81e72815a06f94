"""The sandbox of Linux namespaces: user, mount, process, network, IPC, host name.

A program in it sees an empty network, a read-only root in memory with the system's libraries and Python, and one writable folder of limited
size. Its user has no capabilities. When the first process ends, the kernel ends all others.
"""

from __future__ import annotations

import contextlib
import os
import signal

from rlkit.rewarding import kernel
from rlkit.rewarding.kernel import check_call, libc, write_file

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18  # linux/mount.h
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # by number: libc has no function for this call
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
INSIDE_USER = 1000  # not 0: a user other than root loses all capabilities when the program starts
NOBODY = 65534  # the same user outside, where root runs this: the kernel limits the number of processes only of other users than root


class Namespaces:
    """Enters the namespaces of one sandbox; the methods are called in their order, by the process that runs the programs."""

    has_own_user = True  # within its namespace

    def __init__(self, readable: list[str], links: dict[str, str], disk_mib: int) -> None:
        """readable: paths that are seen where they are. links: name -> path, which is seen by that name in the folder of packages."""
        self.readable, self.links, self.disk_mib = readable, links, disk_mib
        self.folder, self.packages = (_choose_name(name, readable) for name in ("/work", "/packages"))

    def enter(self) -> None:
        """Returns in the first process of the new process namespace; the caller waits for it, passes its end on, and SIGUSR1 to it."""
        _enter_namespaces()
        first = os.fork()
        if first == 0:
            libc.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            links = {f"{self.packages}/{name}": path for name, path in self.links.items()}
            _build_root({**{path: path for path in self.readable}, **links}, [self.folder, self.packages])
            return
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(first, signal.SIGUSR1))
        status = os.waitpid(first, 0)[1]
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)

    def renew_folder(self) -> None:
        """An empty writable folder for the next program."""
        libc.umount2(self.folder.encode(), MNT_DETACH)
        options = f"size={self.disk_mib}m,mode=755,uid={INSIDE_USER},gid={INSIDE_USER}"
        _mount("tmpfs", self.folder, "tmpfs", MS_NOSUID | MS_NODEV, options)

    def confine(self) -> None:
        """In the process of the program."""
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
            os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        kernel.forbid_privileges()

    def kill_programs(self) -> None:
        """All processes but this one, at once."""
        if os.getpid() == 1:  # else it would be all processes of this user
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)

    def remove(self) -> None:
        """Nothing: all its folders are in memory, and end with it."""


def _enter_namespaces() -> None:
    read, write = os.pipe()
    mapper = os.fork()  # stays outside: only there root may map another user than itself
    if mapper == 0:
        os.close(write)  # its own end would keep the pipe open, and it would wait forever where unshare fails
        if os.read(read, 1):
            _map_users(os.getppid())
        os._exit(0)
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    check_call(libc.unshare(flags), "unshare")
    os.write(write, b"!")
    if os.waitpid(mapper, 0)[1] != 0:
        raise OSError("uid_map: not allowed")
    write_file("/proc/sys/user/max_user_namespaces", "0")  # no namespaces inside: they would give capabilities back
    os.close(read)
    os.close(write)


def _map_users(pid: int) -> None:
    user, group = os.getuid(), os.getgid()
    if user == 0:
        for kind in ("uid_map", "gid_map"):
            write_file(f"/proc/{pid}/{kind}", f"0 0 1\n{INSIDE_USER} {NOBODY} 1")
    else:
        write_file(f"/proc/{pid}/setgroups", "deny")
        write_file(f"/proc/{pid}/uid_map", f"{INSIDE_USER} {user} 1")
        write_file(f"/proc/{pid}/gid_map", f"{INSIDE_USER} {group} 1")


def _choose_name(name: str, readable: list[str]) -> str:
    """A folder in the root that nothing readable lies in."""
    return name if not any(path.startswith(f"{name}/") for path in readable) else _choose_name(f"{name}_", readable)


def _build_root(shown: dict[str, str], folders: list[str]) -> None:
    """shown: path inside -> path outside, of files and folders. folders: empty ones."""
    root = next(
        place
        for place in ("/mnt", "/media", "/srv", "/tmp")
        if os.path.isdir(place) and not any(path.startswith(place + "/") for path in shown.values())
    )
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in ("/dev", "/old", *folders):
        os.mkdir(root + folder)
    for inside, path in shown.items():
        _show(path, root + inside)
    for device in DEVICES:
        write_file(root + device, "")
        _mount(device, root + device, "", MS_BIND)
    check_call(libc.syscall(PIVOT_ROOT[os.uname().machine], root.encode(), f"{root}/old".encode()), "pivot_root")
    os.chdir("/")
    check_call(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    _mount("none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _show(path: str, inside: str) -> None:
    """Binds a file or a folder, read only; a link of the system stays a link."""
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
    elif os.path.exists(path) and not os.path.exists(inside):
        os.makedirs(inside if os.path.isdir(path) else os.path.dirname(inside), exist_ok=True)
        if not os.path.isdir(path):
            write_file(inside, "")
        _mount(path, inside, "", MS_BIND | MS_REC)
        _mount("none", inside, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | _get_locked_flags(inside))


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    check_call(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def _get_locked_flags(path: str) -> int:
    """Flags of an existing mount that the kernel does not let us remove."""
    flags = os.statvfs(path).f_flag
    table = {os.ST_NOEXEC: MS_NOEXEC, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
    return sum(flag for mark, flag in table.items() if flags & mark)
