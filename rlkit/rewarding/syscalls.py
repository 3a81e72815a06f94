"""The system calls that namespaces and limits do not hold, as a program for the kernel's filter (seccomp) that refuses them with EPERM.

Keyrings are the user's and outlive a program. Memory behind a descriptor or an id is no part of a process's size, so RLIMIT_AS does not
count it, however much there is. Sockets of some families reach beyond the network namespace (AF_VSOCK: the machine's host); io_uring
would open them without the call that is watched here.

Where the kernel is asked in another machine's numbers (32 bit, x32), it refuses every call: the numbers below would mean others.
"""

from __future__ import annotations

import errno
import socket
import struct

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h
SOCKET = {"x86_64": 41, "aarch64": 198}
REFUSED = {  # call -> its number on x86_64 (asm/unistd_64.h) and on aarch64 (asm-generic/unistd.h)
    "add_key": {"x86_64": 248, "aarch64": 217},
    "request_key": {"x86_64": 249, "aarch64": 218},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "memfd_secret": {"x86_64": 447, "aarch64": 447},
    "shmget": {"x86_64": 29, "aarch64": 194},
    "msgget": {"x86_64": 68, "aarch64": 186},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
}
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # each an empty world in the namespaces
X32 = 0x40000000  # calls of the x32 ABI: the same architecture, numbers from here on

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K: linux/bpf_common.h
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data, linux/seccomp.h; its low word on these two machines
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO

Step = tuple[int, int, int, int]  # code, steps to skip where it holds, where it does not, operand


def filter_for(machine: str) -> bytes:
    """The filter as an array of struct sock_filter. machine: a key of ARCHITECTURE, as os.uname() says it."""
    steps: list[Step] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURE[machine]),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER_AT),
        *_where(AT_LEAST, X32, REFUSE),
    ]
    for numbers in REFUSED.values():
        steps += _where(EQUAL, numbers[machine], REFUSE)
    steps += [(EQUAL, 1, 0, SOCKET[machine]), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, FIRST_ARGUMENT_AT)]
    for family in FAMILIES:
        steps += _where(EQUAL, family, ALLOW)
    steps.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _where(holds: int, operand: int, answer: int) -> list[Step]:
    return [(holds, 0, 1, operand), (RETURN, 0, 0, answer)]
