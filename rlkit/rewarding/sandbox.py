"""Runs unknown Python code in a sandbox: no network, no files but its own folder and the system's libraries, and nothing outlives the run.

The sandbox is made of Linux namespaces (user, mount, process, network, IPC, host name). The program sees an empty network, a read-only root
in memory with the system's libraries and Python, and one writable folder of limited size. Its user has no capabilities and a keyring of its
own. System calls that namespaces do not isolate are refused one by one (syscalls.py). When the first process of the program ends, or the
time is over, the kernel ends all others. Where the kernel does not allow the sandbox, nothing is run.

This file is also the program that sets up the sandbox: `python -I -S sandbox.py <JSON>` enters it and runs the source there.
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
from typing import IO, Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18  # linux/mount.h
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2  # linux/seccomp.h
KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
NO_KEYS = (errno.ENOSYS, errno.EPERM)  # a kernel without keyrings, or a container that does not allow their use
PIVOT_ROOT, KEYCTL = {"x86_64": 155, "aarch64": 41}, {"x86_64": 250, "aarch64": 219}  # by number: libc has no functions for these calls

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
INSIDE_USER = 1000  # not 0: a user other than root loses all capabilities when the program starts
NOBODY = 65534  # the same user outside, where root runs this: the kernel limits the number of processes only of other users than root
SETUP_SECONDS = 30.0  # to set up the sandbox: the kernel may still be removing the networks of earlier runs
TIMEOUT_EXIT = 124  # exit code where the time ran out
SIGNAL_EXIT = 128  # exit code minus this: the signal that ended the program
READY = "ready"  # written when the program is about to start; anything else is the reason why it cannot


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of a program: wall-clock and CPU seconds, MiB of memory per process, MiB of files and of output, processes at a time."""

    seconds: float = 5.0
    memory_mib: int = 512
    disk_mib: int = 16
    processes: int = 16


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended. exit_code is None where its time ran out, negative where a signal ended it."""

    exit_code: int | None
    stdout: str
    stderr: str


class SandboxUnavailable(Exception):
    """This machine cannot set up the sandbox; nothing was run."""


def run_python(source: str, stdin: str = "", limits: SandboxLimits | None = None) -> ProgramResult:
    """Run Python source in the sandbox. Raises SandboxUnavailable where the machine or its kernel does not allow one."""
    from rlkit.rewarding import syscalls  # not at the top: as a program, this file runs without packages

    limits, machine = limits or SandboxLimits(), os.uname().machine
    if machine not in syscalls.ARCHITECTURE:
        raise SandboxUnavailable(
            f"unknown code runs only on {' and '.join(syscalls.ARCHITECTURE)}, this machine is {machine}; leave this reward out"
        )
    status_read, status_write = os.pipe()
    configuration = {"status": status_write, "limits": asdict(limits), "filter": syscalls.build_filter(machine).hex()}
    command = [sys.executable, "-I", "-S", __file__, json.dumps(configuration)]
    with (
        tempfile.TemporaryFile() as program,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        open(status_read, "rb") as status,
    ):
        program.write(f"{len(source.encode())}\n".encode() + source.encode() + stdin.encode())
        program.seek(0)
        process = subprocess.Popen(command, stdin=program, stdout=out, stderr=err, pass_fds=[status_write], env={})
        os.close(status_write)
        try:
            exit_code: int | None = process.wait(limits.seconds + SETUP_SECONDS)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            process.kill()  # and everything inside with it
            process.wait()
        message = status.read().decode()
        if message != READY:
            raise SandboxUnavailable(
                f"this kernel does not allow the sandbox that unknown code needs ({message or 'the set-up ended early'}); "
                "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; "
                "in Docker --security-opt seccomp=unconfined), or leave this reward out"
            )
        return ProgramResult(None if exit_code == TIMEOUT_EXIT else _decode_exit_code(exit_code), _read_text(out), _read_text(err))


def _decode_exit_code(code: int | None) -> int | None:
    return code if code is None or code <= SIGNAL_EXIT else SIGNAL_EXIT - code


def _read_text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _run_in_sandbox(configuration: dict[str, Any]) -> None:
    """Set up the sandbox, run the program inside, end with its exit code."""
    limits, status_write = SandboxLimits(**configuration["limits"]), configuration["status"]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        size = int(_read_line(0))
        source = _read_exactly(0, size)
        _enter_namespaces(libc)
        init = os.fork()  # the first process of the new process namespace; all others end with it
        if init == 0:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            _build_root(libc, limits, source)
            _run_as_init(libc, limits, bytes.fromhex(configuration["filter"]), status_write)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(status_write, str(error).encode())
        os._exit(1)
    os.close(status_write)
    status = os.waitpid(init, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else SIGNAL_EXIT + os.WTERMSIG(status))


def _enter_namespaces(libc: ctypes.CDLL) -> None:
    read, write = os.pipe()
    mapper = os.fork()  # stays outside: only there root may map another user than itself
    if mapper == 0:
        os.close(write)  # its own end would keep the pipe open, and it would wait forever where unshare fails
        if os.read(read, 1):
            _map_users(os.getppid())
        os._exit(0)
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _check_call(libc.unshare(flags), "unshare")
    os.write(write, b"!")
    if os.waitpid(mapper, 0)[1] != 0:
        raise OSError("uid_map: not allowed")
    _write("/proc/sys/user/max_user_namespaces", "0")  # no namespaces inside: they would give capabilities back


def _map_users(pid: int) -> None:
    user, group = os.getuid(), os.getgid()
    if user == 0:
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{pid}/{kind}", f"0 0 1\n{INSIDE_USER} {NOBODY} 1")
    else:
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"{INSIDE_USER} {user} 1")
        _write(f"/proc/{pid}/gid_map", f"{INSIDE_USER} {group} 1")


def _build_root(libc: ctypes.CDLL, limits: SandboxLimits, source: bytes) -> None:
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
            _mount(libc, "none", inside, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | _get_locked_flags(inside))
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
    _check_call(libc.syscall(PIVOT_ROOT[os.uname().machine], root.encode(), f"{root}/old".encode()), "pivot_root")
    os.chdir("/")
    _check_call(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    _mount(libc, "none", "/", "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _run_as_init(libc: ctypes.CDLL, limits: SandboxLimits, seccomp_filter: bytes, status_write: int) -> None:
    """As the first process: start the program and wait for it. Never returns."""
    program = os.fork()
    if program == 0:
        os.chdir("/work")
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
            os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        _check_call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
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
        _install_filter(libc, seccomp_filter)
        os.write(status_write, READY.encode())
        os.close(status_write)
        executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        os.execve(
            executable, [executable, "-I", "-S", "-B", "/work/program.py"], {"HOME": "/work", "TMPDIR": "/work", "PYTHONHASHSEED": "0"}
        )
    os.close(status_write)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMEOUT_EXIT))
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else SIGNAL_EXIT + os.WTERMSIG(status))


def _join_new_keyring(libc: ctypes.CDLL) -> None:
    """Leave the session keyring of the process: it holds the trainer's keys, and later programs would find what this one puts there."""
    if libc.syscall(KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in NO_KEYS:
        raise OSError(f"session keyring: {os.strerror(ctypes.get_errno())}")


def _install_filter(libc: ctypes.CDLL, seccomp_filter: bytes) -> None:
    """Have the kernel refuse system calls (syscalls.py) in this process and its descendants from now on."""
    instructions = ctypes.create_string_buffer(seccomp_filter, len(seccomp_filter))
    program = struct.pack("HP", len(seccomp_filter) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    _check_call(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _check_call(libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def _get_locked_flags(path: str) -> int:
    """Flags of an existing mount that the kernel does not let us remove."""
    flags = os.statvfs(path).f_flag
    table = {os.ST_NOEXEC: MS_NOEXEC, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
    return sum(flag for mark, flag in table.items() if flags & mark)


def _check_call(result: int, what: str) -> None:
    if result != 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _read_line(descriptor: int) -> bytes:
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"\n", b""):
        line += byte
    return line


def _read_exactly(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        content += os.read(descriptor, size - len(content))
    return content


if __name__ == "__main__":
    _run_in_sandbox(json.loads(sys.argv[1]))
