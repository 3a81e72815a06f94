"""Run a program that nobody has read: no network, no file but its own folder and the system's libraries, no way to stay.

Linux namespaces do it (user, mount, process, network, IPC, host name): the program sees an empty network, a root in memory that holds the
system's libraries and Python, read-only, and one writable folder of bounded size, as a user without capabilities and with a keyring of its
own. What gets around all that is refused call by call (syscalls.py). When its first process ends, or the time is over, the kernel ends all
the others. Where the kernel does not allow this, nothing is run.

The file is also the program that builds the walls: `python -I -S sandbox.py <JSON>` enters them and runs the source there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18  # linux/mount.h
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2  # linux/seccomp.h
KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
NO_KEYS = (errno.ENOSYS, errno.EPERM)  # a kernel without keyrings, or a container in which nobody may touch them
PIVOT_ROOT, KEYCTL = {"x86_64": 155, "aarch64": 41}, {"x86_64": 250, "aarch64": 219}  # by number: libc has no functions for them

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
INSIDE_USER = 1000  # not 0: a user who is not root loses all capabilities when the program starts
NOBODY = 65534  # who that is outside, where root runs this: the kernel limits the number of processes of everybody but root
WALLS_SECONDS = 30.0  # to build the walls: the kernel takes its time to clear away networks of earlier runs


@dataclass(frozen=True)
class Limits:
    """What a program may use: wall-clock and CPU seconds, MiB of memory a process, MiB of files and of output, processes at once."""

    seconds: float = 5.0
    memory_mib: int = 512
    disk_mib: int = 16
    processes: int = 16


@dataclass(frozen=True)
class Result:
    """How a program ended. exit_code is None where its time ran out, negative where a signal ended it."""

    exit_code: int | None
    stdout: str
    stderr: str


class Unavailable(Exception):
    """The walls cannot be built on this machine; nothing was run."""


def run(source: str, stdin: str = "", limits: Limits | None = None) -> Result:
    """Run Python source behind the walls. Raises Unavailable where the kernel does not give them."""
    from rlkit.rewarding import syscalls  # not above: the program that this file is too runs without packages

    limits, machine = limits or Limits(), os.uname().machine
    if machine not in syscalls.ARCHITECTURE:
        raise Unavailable(
            f"unknown code runs only on {' and '.join(syscalls.ARCHITECTURE)}, this machine is {machine}; leave this reward out"
        )
    told, tell = os.pipe()
    configuration = {"tell": tell, "limits": asdict(limits), "filter": syscalls.filter_for(machine).hex()}
    command = [sys.executable, "-I", "-S", __file__, json.dumps(configuration)]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(told, "rb") as walls:
        given.write(f"{len(source.encode())}\n".encode() + source.encode() + stdin.encode())
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=err, pass_fds=[tell], env={})
        os.close(tell)
        try:
            exit_code: int | None = process.wait(limits.seconds + WALLS_SECONDS)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            process.kill()  # and with it everything inside
            process.wait()
        trouble = walls.read().decode()
        if trouble != "standing":
            raise Unavailable(
                f"this kernel does not give the walls that unknown code must run behind ({trouble or 'the set-up ended early'}); "
                "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; "
                "in Docker --security-opt seccomp=unconfined), or leave this reward out"
            )
        return Result(None if exit_code == TIME_IS_OVER else _signed(exit_code), _text(out), _text(err))


TIME_IS_OVER = 124
SIGNALLED = 128


def _signed(code: int | None) -> int | None:
    return code if code is None or code <= SIGNALLED else SIGNALLED - code


def _text(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    return str(file.read().decode(errors="replace"))  # type: ignore[attr-defined]


def _main(configuration: str) -> None:
    """Build the walls, run the program inside, end with its exit code."""
    given = json.loads(configuration)
    limits, tell = Limits(**given["limits"]), given["tell"]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        size = int(_line(0))
        source = _exactly(0, size)
        _enter_namespaces(libc)
        init = os.fork()  # the first process of the new process namespace; all others end with it
        if init == 0:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            _build_root(libc, limits, source)
            _be_init(libc, limits, bytes.fromhex(given["filter"]), tell)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(tell, str(error).encode())
        os._exit(1)
    os.close(tell)
    status = os.waitpid(init, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else SIGNALLED + os.WTERMSIG(status))


def _enter_namespaces(libc: ctypes.CDLL) -> None:
    read, write = os.pipe()
    mapper = os.fork()  # stays outside: only from there may root map another user than itself
    if mapper == 0:
        os.close(write)  # its own end would keep the pipe open, and it would wait for ever where unshare fails
        if os.read(read, 1):
            _map_users(os.getppid())
        os._exit(0)
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _checked(libc.unshare(flags), "unshare")
    os.write(write, b"!")
    if os.waitpid(mapper, 0)[1] != 0:
        raise OSError("uid_map: not allowed")
    _write("/proc/sys/user/max_user_namespaces", "0")  # no namespaces within: they would give capabilities back


def _map_users(pid: int) -> None:
    user, group = os.getuid(), os.getgid()
    if user == 0:
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{kind}", f"0 0 1\n{INSIDE_USER} {NOBODY} 1")
    else:
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"{INSIDE_USER} {user} 1")
        _write(f"/proc/{pid}/gid_map", f"{INSIDE_USER} {group} 1")


def _build_root(libc: ctypes.CDLL, limits: Limits, source: bytes) -> None:
    python = os.path.realpath(sys.base_prefix)
    root = next(place for place in ("/mnt", "/media", "/srv", "/tmp") if os.path.isdir(place) and not python.startswith(place + "/"))
    _mount(libc, "none", "/", "", MS_REC | MS_PRIVATE)
    _mount(libc, "tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in dict.fromkeys((*SYSTEM_FOLDERS, python)):
        inside = root + folder
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), inside)
        elif os.path.isdir(folder) and not os.path.exists(inside):
            os.makedirs(inside)
            _mount(libc, folder, inside, "", MS_BIND | MS_REC)
            _mount(libc, "none", inside, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | _kept_flags(inside))
    os.mkdir(f"{root}/dev")
    for device in DEVICES:
        _write(root + device, "")
        _mount(libc, device, root + device, "", MS_BIND)
    os.mkdir(f"{root}/work")
    _mount(
        libc,
        "tmpfs",
        f"{root}/work",
        "tmpfs",
        MS_NOSUID | MS_NODEV,
        f"size={limits.disk_mib}m,mode=755,uid={INSIDE_USER},gid={INSIDE_USER}",
    )
    with open(f"{root}/work/program.py", "wb") as file:
        file.write(source)
    os.mkdir(f"{root}/old")
    _checked(libc.syscall(PIVOT_ROOT[os.uname().machine], root.encode(), f"{root}/old".encode()), "pivot_root")
    os.chdir("/")
    _checked(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    _mount(libc, "none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _be_init(libc: ctypes.CDLL, limits: Limits, refusals: bytes, tell: int) -> None:
    """Start the program and wait for it; never returns."""
    program = os.fork()
    if program == 0:
        os.chdir("/work")
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
            os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        cpu = int(limits.seconds) + 1
        bounds = {
            resource.RLIMIT_CPU: cpu,
            resource.RLIMIT_AS: limits.memory_mib * 2**20,
            resource.RLIMIT_FSIZE: limits.disk_mib * 2**20,
            resource.RLIMIT_NPROC: limits.processes,
            resource.RLIMIT_NOFILE: 64,
            resource.RLIMIT_CORE: 0,
        }
        for which, bound in bounds.items():
            resource.setrlimit(which, (bound, bound))
        _join_new_keyring(libc)
        _refuse(libc, refusals)
        os.write(tell, b"standing")
        os.close(tell)
        executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        os.execve(
            executable, [executable, "-I", "-S", "-B", "/work/program.py"], {"HOME": "/work", "TMPDIR": "/work", "PYTHONHASHSEED": "0"}
        )
    os.close(tell)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIME_IS_OVER))
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else SIGNALLED + os.WTERMSIG(status))


def _join_new_keyring(libc: ctypes.CDLL) -> None:
    """Leave the session keyring that comes with the process: the trainer's keys are in it, and the next program would find what is left."""
    if libc.syscall(KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in NO_KEYS:
        raise OSError(f"session keyring: {os.strerror(ctypes.get_errno())}")


def _refuse(libc: ctypes.CDLL, refusals: bytes) -> None:
    """Have the kernel refuse these system calls (syscalls.py) from here on, to all that starts from here."""
    steps = ctypes.create_string_buffer(refusals, len(refusals))
    program = struct.pack("HP", len(refusals) // 8, ctypes.addressof(steps))  # struct sock_fprog
    _checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _checked(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def _kept_flags(path: str) -> int:
    """Flags that a mount had before and that the kernel does not let us take away."""
    had = os.statvfs(path).f_flag
    table = {os.ST_NOEXEC: MS_NOEXEC, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
    return sum(flag for mark, flag in table.items() if had & mark)


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _line(descriptor: int) -> bytes:
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"\n", b""):
        line += byte
    return line


def _exactly(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        content += os.read(descriptor, size - len(content))
    return content


if __name__ == "__main__":
    _main(sys.argv[1])
