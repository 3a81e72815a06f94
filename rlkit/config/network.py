"""Finds the addresses in a recipe that offline=true does not allow: those of other machines that offline_hosts does not name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

URL = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://\S+\s*")  # the whole value: a prompt may speak of an address
LOCAL_SCHEMES = ("file", "unix", "pkg")


def find_remote_urls(config: Mapping[str, Any], hosts: Collection[str]) -> list[str]:
    """A line for each value of a recipe that is a URL of another machine than this one and `hosts`: its key and its host, no more."""
    allowed = {_normalise(host) for host in hosts}
    remote = []
    for key, value in _walk(config, ""):
        if URL.fullmatch(value) and (host := _get_host(value.strip())) is not None and not is_loopback(host) and host not in allowed:
            remote.append(f"{key} is a URL of {host or 'an unknown host'}")
    return remote


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine: localhost, or an address such as 127.0.0.1 and ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; 2130706433 and 127.1 too, which not every client reads in the same way
        return False


def check_host(host: str) -> str:
    """A host as offline_hosts holds it. Raises ValueError for a URL, or a host with a port."""
    if not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]+", host) or re.fullmatch(r"[\w.-]*:\d+", host):
        raise ValueError(
            f"offline_hosts: {host!r} is not the name or the address of a host; write judge.local or 10.0.0.7, without port or path"
        )
    return host


def parse_address(value: int | str) -> tuple[str, int]:
    """PORT (of 127.0.0.1), HOST:PORT or [IPv6]:PORT as host and port. Raises ValueError."""
    host, colon, port = str(value).rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535 or bool(colon) != bool(host):
        raise ValueError(f"report.prometheus={value} is not valid: it should be a port from 1 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _get_host(url: str) -> str | None:
    """None where the scheme needs no network; empty where the URL cannot be read, or not by all in the same way."""
    if "\\" in url:
        return ""
    try:
        parts = urlsplit(url)
        return None if parts.scheme.lower() in LOCAL_SCHEMES else _normalise(parts.hostname or "")
    except ValueError:
        return ""


def _normalise(host: str) -> str:
    return host.lower().rstrip(".")


def _walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a recipe, those that are keys themselves too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _walk(part, ".".join(filter(None, (key, str(name)))))  # the only source of data has no name
            if isinstance(name, str):
                yield key, name
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, part in enumerate(value):
            yield from _walk(part, f"{key}[{index}]")
