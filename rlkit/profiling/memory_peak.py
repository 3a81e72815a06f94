"""The peak memory of a phase: of the device, or of this process where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

GIB = 2**30


class PeakMemory:
    """Measures peaks. The memory of a sleeping rollout engine has left the device, but torch still counts it: it is subtracted."""

    def __init__(self) -> None:
        self._asleep = 0.0
        self._highest = 0.0

    def start(self) -> None:
        """Starts a phase: `peak` counts from here."""
        self._highest = 0.0
        reset_peak()

    def peak(self) -> float:
        """The peak in bytes since `start`."""
        self._highest = max(self._highest, read_peak() - self._asleep)
        return self._highest

    @contextmanager
    def behind_torch(self) -> Iterator[None]:
        """A context in which memory is freed or allocated that torch does not count."""
        self.peak()
        before = read_reserved_and_free()
        yield
        self._asleep += read_reserved_and_free() - before
        reset_peak()


def reset_peak() -> None:
    """Starts a new peak."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # a container may forbid it; then the peak is that of the whole run
        Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> float:
    """The peak in bytes since `reset_peak`: reserved by torch on a device, or resident in this process."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_reserved())
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def read_reserved_and_free() -> float:
    """Bytes reserved by torch plus free bytes of the device. The sum grows by the memory that torch counts but that is not there."""
    if not torch.cuda.is_initialized():
        return 0.0
    free, _ = torch.cuda.mem_get_info()
    return float(torch.cuda.memory_reserved() + free)


def build_memory_metrics(peaks: Mapping[str, float], predicted: Mapping[str, float]) -> dict[str, float]:
    """The measured and the predicted peak of each phase, in GiB."""
    measured = {f"memory/{phase}_peak_gib": size / GIB for phase, size in peaks.items()}
    return measured | {f"memory/{phase}_predicted_gib": size / GIB for phase, size in predicted.items()}
