"""The GPUs of this machine, counted and measured without CUDA: a process that only reads a recipe must not start it."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

DRIVER, DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
TIMEOUT = 20.0  # seconds for nvidia-smi, which hangs on a broken driver


def count_gpus() -> int:
    """The number of GPUs of this machine, whatever CUDA_VISIBLE_DEVICES is."""
    listed = len(list(DRIVER.glob("*"))) if DRIVER.is_dir() else 0
    if listed == 0 and (DEVICES / "nvidia0").exists():
        listed = len(list(DEVICES.glob("nvidia[0-9]*")))
    return listed


def count_visible_gpus() -> int:
    """The number of GPUs that CUDA_VISIBLE_DEVICES allows; all GPUs of this machine where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count_gpus() if named is None else len([name for name in named.split(",") if name])


@cache
def gpu_memory() -> float | None:
    """The memory of this machine's first GPU in bytes, as nvidia-smi reports it; None without a GPU or without an answer."""
    if not count_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return float(answer.split()[0]) * 2**20
