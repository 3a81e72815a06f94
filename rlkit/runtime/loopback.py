"""The loopback interface. gloo needs it even for one process. It is up on every machine and in every container, but down in a new network
namespace (`unshare -n`)."""

from __future__ import annotations

import fcntl
import socket
import struct

from rlkit.errors import UserError

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # Linux, linux/sockios.h and linux/if.h


def ensure_loopback() -> None:
    """Brings `lo` up if it is down. Raises UserError where that is not allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            name, flags = struct.unpack("16sh", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))
        except OSError:
            return  # there is no such interface: not Linux, or an unusual machine
        if flags & IFF_UP:
            return
        try:
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP))
        except OSError as error:
            raise UserError("the loopback interface of this network namespace is down; run `ip link set lo up` in it") from error
