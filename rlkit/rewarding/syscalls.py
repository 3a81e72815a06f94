"""Seccomp filters that refuse, with EPERM, the system calls that a sandbox does not isolate.

Keyrings belong to the user and outlive a program. Memory behind a descriptor or an id does not count in the size of a process, so
RLIMIT_AS does not limit it. Sockets of some families reach beyond the network namespace (AF_VSOCK: the host of a virtual machine); io_uring
would open them without the call that is filtered here.

Landlock leaves more to the filter: it knows nothing of sockets other than TCP, of the modes, owners, dates and attributes of files, of the
IPC of System V and POSIX, nor of the priorities and limits of other processes of the same user.

Calls of another ABI (32 bit, x32) are all refused: there the numbers below mean other calls.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h
Numbers = dict[str, tuple[int | None, int | None]]  # call -> number on x86_64 (asm/unistd_64.h), on aarch64 (asm-generic/unistd.h)
REFUSED: Numbers = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "io_uring_setup": (425, 425),
}
REFUSED_WITH_LANDLOCK: Numbers = {
    # ways to others
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # files by their paths
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "truncate": (76, 45),
    "file_setattr": (469, 469),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the kernel itself
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
REFUSED_WITHOUT_SCOPES: Numbers = {  # where Landlock does not keep signals inside: these, and new processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "fork": (57, None),
    "vfork": (58, None),
}
ABSENT: Numbers = {"clone3": (435, 435), "openat2": (437, 437)}  # ENOSYS, for a filter cannot read their arguments; libc uses others then
INSPECTED: Numbers = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "open": (2, None),
    "openat": (257, 56),
    "clone": (56, 220),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
}
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # each is empty inside the namespaces
X32 = 0x40000000  # calls of the x32 ABI: the same architecture, numbers from here up
SCOPES_SINCE = 6  # the version of Landlock's ABI that keeps signals and abstract sockets inside (Linux 6.12)

LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, |JGE|K, BPF_RET|K
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data; of 8 bytes, the low word first on these two machines
ALLOW, REFUSE, ABSENT_CALL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO

Instruction = tuple[int, int, int, int]  # code, instructions to skip if true, if false, operand


class ArgumentRule(NamedTuple):
    """Refuses a call whose argument, under a mask, is one of the values; with `unless`, one whose argument is none of them."""

    call: str
    argument: int
    mask: int
    values: Sequence[int]
    unless: bool


ANY, NEW_NAMESPACES, THREAD = 0xFFFFFFFF, 0x7E020000, 0x00010000  # all bits; CLONE_NEW*, CLONE_THREAD: linux/sched.h
FAMILY_RULE = ArgumentRule("socket", 0, ANY, FAMILIES, unless=True)
LANDLOCK_RULES = [
    ArgumentRule("socketpair", 0, ANY, [socket.AF_UNIX], unless=True),
    ArgumentRule("socketpair", 1, 0xF, [socket.SOCK_STREAM], unless=True),  # a pair of datagram sockets can send to others
    ArgumentRule("open", 1, os.O_TRUNC | os.O_ACCMODE, [os.O_TRUNC], unless=False),  # empties a file that may only be read
    ArgumentRule("openat", 2, os.O_TRUNC | os.O_ACCMODE, [os.O_TRUNC], unless=False),
    ArgumentRule("clone", 0, NEW_NAMESPACES, [0], unless=True),
    ArgumentRule("fcntl", 1, ANY, [8, 10, 15], unless=False),  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to others
    ArgumentRule("ioctl", 1, ANY, [0x8901, 0x8902], unless=False),  # FIOSETOWN, SIOCSPGRP: the same
    ArgumentRule("prlimit64", 0, ANY, [0], unless=True),  # limits of others
]
THREADS_ONLY = ArgumentRule("clone", 0, THREAD, [THREAD], unless=True)


def build_filter(machine: str, landlock_abi: int = 0) -> bytes:
    """The filter as an array of struct sock_filter. machine: a key of ARCHITECTURE. landlock_abi: 0 for a sandbox of namespaces."""
    instructions: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURE[machine]),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER_AT),
        *_return_if(AT_LEAST, X32, REFUSE),
        *_refuse(REFUSED, machine),
    ]
    rules = [FAMILY_RULE]
    if landlock_abi:
        rules = list(LANDLOCK_RULES)
        instructions += [*_refuse(REFUSED_WITH_LANDLOCK, machine), *_refuse(ABSENT, machine, ABSENT_CALL)]
        if landlock_abi < SCOPES_SINCE:
            rules.append(THREADS_ONLY)
            instructions += _refuse(REFUSED_WITHOUT_SCOPES, machine)
    for rule in rules:
        number = get_number(INSPECTED[rule.call], machine)
        if number is not None:
            check = _check_argument(rule)
            instructions += [(EQUAL, 0, len(check), number), *check]
    instructions.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def get_number(numbers: tuple[int | None, int | None], machine: str) -> int | None:
    """The number of a call on this machine; None where it has no such call."""
    return numbers[list(ARCHITECTURE).index(machine)]


def _refuse(calls: Numbers, machine: str, action: int = REFUSE) -> Iterable[Instruction]:
    for numbers in calls.values():
        if (number := get_number(numbers, machine)) is not None:
            yield from _return_if(EQUAL, number, action)


def _check_argument(rule: ArgumentRule) -> list[Instruction]:
    """Refuses, or leaves the number of the call loaded for what follows."""
    load: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * rule.argument), (AND, 0, 0, rule.mask)]
    if rule.unless:
        tests: list[Instruction] = [(EQUAL, len(rule.values) - place, 0, value) for place, value in enumerate(rule.values)]
        tests.append((RETURN, 0, 0, REFUSE))
    else:
        tests = [step for value in rule.values for step in _return_if(EQUAL, value, REFUSE)]
    return [*load, *tests, (LOAD, 0, 0, NUMBER_AT)]


def _return_if(test: int, operand: int, action: int) -> list[Instruction]:
    return [(test, 0, 1, operand), (RETURN, 0, 0, action)]
