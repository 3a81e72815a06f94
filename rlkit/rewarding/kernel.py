"""Linux calls by ctypes with which a process confines itself, once and for all: limits, capabilities, keyring, system calls, files.

The process that starts unknown code imports this without any package, so it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38  # linux/prctl.h
SECCOMP_MODE_FILTER = 2  # linux/seccomp.h
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
NO_KEYS = (errno.ENOSYS, errno.EPERM)  # a kernel without keyrings, or a container that does not allow their use
KEYCTL, CAPSET = {"x86_64": 250, "aarch64": 219}, {"x86_64": 126, "aarch64": 91}  # by number: libc has no functions for these calls
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # of Landlock, the same on both
RULE_PATH_BENEATH, CREATE_RULESET_VERSION = 1, 1  # linux/landlock.h, as what follows
# LANDLOCK_ACCESS_FS_*: execute, write and read a file (and IOCTL_DEV, TRUNCATE), list a folder, and nine ways to change one
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REFER, TRUNCATE, IOCTL_DEV = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14, 1 << 15
ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # what a rule for one file may name
NET_TCP, SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 3, 1, 2  # bind and connect
NET_SINCE, SCOPES_SINCE = 4, 6  # versions of Landlock's ABI

libc = ctypes.CDLL(None, use_errno=True)


def check_call(result: int, what: str) -> int:
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def write_file(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def set_limits(seconds: float, memory_mib: int, disk_mib: int, processes: int | None) -> None:
    """CPU time, memory of a process, size of a file, processes of this user (None: it has others too, which would count)."""
    cpu = int(seconds) + 1
    bounds = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_AS: memory_mib * 2**20,
        resource.RLIMIT_FSIZE: disk_mib * 2**20,
        **({} if processes is None else {resource.RLIMIT_NPROC: processes}),
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for which, bound in bounds.items():
        hard = resource.getrlimit(which)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (bound, bound))


def forbid_privileges() -> None:
    """No program that this process starts gains a privilege."""
    check_call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def drop_capabilities() -> None:
    """With no new privileges, for good: also for a root user."""
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    check_call(libc.syscall(CAPSET[os.uname().machine], header, nothing), "capset")


def join_new_keyring() -> None:
    """Leave the session keyring of the process: it holds the trainer's keys, and later programs would find what this one puts there."""
    if libc.syscall(KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in NO_KEYS:
        raise OSError(f"session keyring: {os.strerror(ctypes.get_errno())}")


def install_filter(seccomp_filter: bytes) -> None:
    """Have the kernel refuse system calls (syscalls.py) in this process and its descendants from now on."""
    instructions = ctypes.create_string_buffer(seccomp_filter, len(seccomp_filter))
    program = struct.pack("HP", len(seccomp_filter) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    check_call(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "seccomp")


def find_landlock_abi() -> int:
    """The version of Landlock's ABI. Raises OSError where the kernel has no Landlock."""
    return check_call(libc.syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION), "Landlock")


def restrict_signals() -> None:
    """This process and its descendants can send signals to each other alone, whatever their user. Needs an ABI from SCOPES_SINCE."""
    _restrict(struct.pack("QQQ", 0, 0, SCOPE_SIGNAL), {})


def restrict_files(abi: int, rights: dict[str, int]) -> None:
    """This process and its descendants see no files but those under these paths, and use them by these rights; no TCP, no signal out."""
    handled = ALL_BY_ABI.get(abi, ALL_BY_ABI[5])
    attributes = struct.pack("Q", handled)
    if abi >= NET_SINCE:
        attributes += struct.pack("Q", NET_TCP)
    if abi >= SCOPES_SINCE:
        attributes += struct.pack("Q", SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL)
    _restrict(attributes, {path: allowed & handled for path, allowed in rights.items()})


def _restrict(attributes: bytes, rights: dict[str, int]) -> None:
    ruleset = check_call(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "Landlock rules")
    for path, allowed in rights.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= -1 if os.path.isdir(path) else OF_FILES
        check_call(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", allowed, place), 0), f"Landlock rule for {path}")
        os.close(place)
    check_call(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)
