"""What each GPU of this machine is used for, by NVML. The only file that imports pynvml (nvidia-ml-py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class GpuUsage:
    """utilisation: share of the last sampling period in which a kernel ran; memory in bytes."""

    index: int
    name: str
    utilisation: float
    memory_used: float
    memory: float


def read_gpu_usage() -> list[GpuUsage]:
    """All GPUs of this machine; empty without one, or without NVML. A GPU that does not answer is left out."""
    nvml = _open_nvml()
    usage = []
    for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            memory, rates = nvml.nvmlDeviceGetMemoryInfo(device), nvml.nvmlDeviceGetUtilizationRates(device)
            usage.append(GpuUsage(index, nvml.nvmlDeviceGetName(device), rates.gpu / 100, float(memory.used), float(memory.total)))
        except nvml.NVMLError:  # lost, or one of a slice (MIG), which has no utilisation
            continue
    return usage


@cache
def _open_nvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
