"""The most memory that a phase took: of the device, or of this process where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

GIB = 2**30


class PeakMemory:
    """Reads peaks, of the device without what a rollout engine has given away: asleep its memory is not there, and torch counts it."""

    def __init__(self) -> None:
        self._asleep = 0.0
        self._highest = 0.0

    def start(self) -> None:
        """Peaks are counted from here."""
        self._highest = 0.0
        reset_peak()

    def peak(self) -> float:
        """Bytes since `start`."""
        self._highest = max(self._highest, read_peak() - self._asleep)
        return self._highest

    @contextmanager
    def behind_torch(self) -> Iterator[None]:
        """Inside, memory goes or comes without torch's knowing."""
        self.peak()
        before = read_reserved_and_free()
        yield
        self._asleep += read_reserved_and_free() - before
        reset_peak()


def reset_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # a container may forbid it: then the peak is that of the whole run
        Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> float:
    """Bytes since `reset_peak`, as torch counts those of a device."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_reserved())
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def read_reserved_and_free() -> float:
    """Bytes that torch counts on the device and those that are free there: together they grow by what torch counts and is not there."""
    if not torch.cuda.is_initialized():
        return 0.0
    free, _ = torch.cuda.mem_get_info()
    return float(torch.cuda.memory_reserved() + free)


def build_memory_metrics(peaks: Mapping[str, float], predicted: Mapping[str, float]) -> dict[str, float]:
    """GiB at the peak of each phase, measured and predicted."""
    measured = {f"memory/{phase}_peak_gib": size / GIB for phase, size in peaks.items()}
    return measured | {f"memory/{phase}_predicted_gib": size / GIB for phase, size in predicted.items()}
