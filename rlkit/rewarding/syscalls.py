"""A seccomp filter that refuses, with EPERM, the system calls that namespaces and limits do not isolate.

Keyrings belong to the user and outlive a program. Memory behind a descriptor or an id does not count in the size of a process, so
RLIMIT_AS does not limit it. Sockets of some families reach beyond the network namespace (AF_VSOCK: the host of a virtual machine); io_uring
would open them without the call that is filtered here.

Calls of another ABI (32 bit, x32) are all refused: there the numbers below mean other calls.
"""

from __future__ import annotations

import errno
import socket
import struct

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h
SOCKET = {"x86_64": 41, "aarch64": 198}
REFUSED = {  # call -> number on x86_64 (asm/unistd_64.h) and on aarch64 (asm-generic/unistd.h)
    "add_key": {"x86_64": 248, "aarch64": 217},
    "request_key": {"x86_64": 249, "aarch64": 218},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "memfd_secret": {"x86_64": 447, "aarch64": 447},
    "shmget": {"x86_64": 29, "aarch64": 194},
    "msgget": {"x86_64": 68, "aarch64": 186},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
}
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # each is empty inside the namespaces
X32 = 0x40000000  # calls of the x32 ABI: the same architecture, numbers from here up

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K: linux/bpf_common.h
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = (
    0,
    4,
    16,
)  # offsets in struct seccomp_data, linux/seccomp.h; the low word on these two machines
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO

Instruction = tuple[int, int, int, int]  # code, instructions to skip if true, if false, operand


def build_filter(machine: str) -> bytes:
    """The filter as an array of struct sock_filter. machine: a key of ARCHITECTURE, as in os.uname()."""
    instructions: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURE[machine]),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER_AT),
        *_return_if(AT_LEAST, X32, REFUSE),
    ]
    for numbers in REFUSED.values():
        instructions += _return_if(EQUAL, numbers[machine], REFUSE)
    instructions += [(EQUAL, 1, 0, SOCKET[machine]), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, FIRST_ARGUMENT_AT)]
    for family in FAMILIES:
        instructions += _return_if(EQUAL, family, ALLOW)
    instructions.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _return_if(test: int, operand: int, action: int) -> list[Instruction]:
    return [(test, 0, 1, operand), (RETURN, 0, 0, action)]
