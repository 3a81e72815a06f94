"""The GPUs and the memory of this machine, measured without CUDA: a process that only reads a recipe must not start it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

DRIVER, DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
TIMEOUT = 20.0  # seconds for nvidia-smi, which hangs on a broken driver


def count_gpus() -> int:
    """The number of GPUs of this machine, whatever CUDA_VISIBLE_DEVICES is."""
    listed = len(list(DRIVER.glob("*"))) if DRIVER.is_dir() else 0
    if listed == 0 and (DEVICES / "nvidia0").exists():
        listed = len(list(DEVICES.glob("nvidia[0-9]*")))
    return listed


def list_visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by number or UUID; None where it is not set. As for CUDA, the first name of no GPU (-1,
    NoDevFiles) ends the list."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    return list(takewhile(lambda name: name.isdigit() or name.startswith(("GPU-", "MIG-")), map(str.strip, named.split(","))))


def count_visible_gpus() -> int:
    """The number of GPUs that CUDA_VISIBLE_DEVICES allows; all GPUs of this machine where it is not set."""
    visible = list_visible_gpus()
    return count_gpus() if visible is None else len(visible)


@cache
def gpu_memory() -> float | None:
    """The memory of the first visible GPU in bytes, as nvidia-smi reports it; None without a GPU or without an answer."""
    if not count_gpus() or not count_visible_gpus():
        return None
    visible = list_visible_gpus()
    try:
        return float((ask_nvidia_smi("memory.total", *(visible or ())[:1]) or "").split()[0]) * 2**20
    except (IndexError, ValueError):  # no answer, or one in words
        return None


def ask_nvidia_smi(query: str, gpu: str | None = None) -> str | None:
    """The answer of nvidia-smi, a line for each GPU, or for one of them; None where it fails or is missing."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", *(["-i", gpu] if gpu else [])]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


class HostMemory(NamedTuple):
    """Bytes of this machine, or of the control group in which this process runs where that allows less."""

    total: float
    free: float  # or reclaimable


class ControlGroup(NamedTuple):
    """Files of a control group's memory controller, and the line of memory.stat with the bytes that can be reclaimed."""

    limit: str
    usage: str
    reclaimable: str


CONTROL_GROUPS = {  # by version; /proc/self/cgroup names the controllers of version 1, and none of version 2
    1: ControlGroup("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ControlGroup("memory.max", "memory.current", "inactive_file"),
}


def host_memory() -> HostMemory | None:
    """The memory of this machine; None where the system does not tell it (Linux does)."""
    try:
        lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        found = {words[0]: float(words[1]) * 1024 for words in lines if len(words) > 1}
        parts = [HostMemory(found["MemTotal:"], found["MemAvailable:"]), *read_control_groups()]
    except (OSError, KeyError, ValueError):
        return None
    return HostMemory(min(part.total for part in parts), max(0.0, min(part.free for part in parts)))


def read_control_groups() -> Iterator[HostMemory]:
    """The limits of this process's control group and of those around it, of either version."""
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield from read_limits(CGROUPS / "memory", path, CONTROL_GROUPS[1])
            elif not controllers:
                yield from read_limits(CGROUPS, path, CONTROL_GROUPS[2])


def read_limits(root: Path, path: str, files: ControlGroup) -> Iterator[HostMemory]:
    """Of a control group and of those around it up to `root`. In a container `root` may be its own, whatever `path` is."""
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        with suppress(OSError, ValueError):  # it has no limit, or is not in this container
            limit, usage = (float((group / name).read_text()) for name in (files.limit, files.usage))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield HostMemory(limit, limit - usage + float(stat.get(files.reclaimable, 0)))
        if group == root:
            return


def resident_memory() -> float:
    """Bytes that this process has in memory now; 0 where the system does not tell it."""
    with suppress(OSError):
        for line in (PROC / "self" / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * 1024
    return 0.0
