"""The loopback interface, which torch's gloo wants even when a process is alone: up in every machine and container, down in a bare
network namespace (`unshare -n`)."""

from __future__ import annotations

import fcntl
import socket
import struct

from rlkit.errors import UserError

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # Linux, linux/sockios.h and linux/if.h


def ensure_loopback() -> None:
    """Brings `lo` up where it is down. Raises UserError where that is not allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            name, flags = struct.unpack("16sh", fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))
        except OSError:
            return  # no such interface here: not Linux, or a machine that is set up in another way
        if flags & IFF_UP:
            return
        try:
            fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP))
        except OSError as error:
            raise UserError("the loopback interface of this network namespace is down; run `ip link set lo up` in it") from error
