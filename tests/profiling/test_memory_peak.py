"""The peak memory of a phase where torch does not see all changes: a simulated device, and this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlkit.profiling import memory_peak
from rlkit.profiling.memory_peak import GIB, PeakMemory, build_memory_metrics

ROOT = Path(__file__).resolve().parents[2]
OTHERS = 7  # memory of libraries on the device that torch does not count


class Device:
    """A GPU of 100 bytes, as torch and CUDA report it. The memory of a rollout engine was allocated by torch; when it sleeps it has left
    the device, and torch still counts it."""

    def __init__(self) -> None:
        self.reserved = self.highest = self.asleep = 0

    def takes(self, size: int) -> None:
        self.reserved += size
        self.highest = max(self.highest, self.reserved)

    def as_torch(self) -> SimpleNamespace:
        def reset() -> None:
            self.highest = self.reserved

        return SimpleNamespace(
            is_initialized=lambda: True,
            max_memory_reserved=lambda: self.highest,
            memory_reserved=lambda: self.reserved,
            reset_peak_memory_stats=reset,
            mem_get_info=lambda: (100 - OTHERS - self.reserved + self.asleep, 100),
        )


def test_what_sleeps_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device, meter = Device(), PeakMemory()
    monkeypatch.setattr(memory_peak.torch, "cuda", device.as_torch())
    device.takes(30)  # the rollout engine's
    device.takes(20)  # the trainer's
    meter.start()
    with meter.behind_torch():
        device.asleep = 30
        device.takes(-5)  # what was cached goes back to the device: torch knows
    assert meter.peak() == 50  # until then all was there
    meter.start()
    device.takes(40)
    device.takes(-40)
    assert meter.peak() == 15 + 40  # and not 30 more
    with meter.behind_torch():
        device.asleep = 20  # its weights wake
    device.takes(5)
    assert meter.peak() == 55  # the highest of the phase stays
    meter.start()
    assert meter.peak() == 15 + 5 + 10
    with meter.behind_torch():
        device.asleep = 0
    assert meter.peak() == 50


HOLDS_256_MIB = """
import numpy
from rlkit.profiling.memory_peak import PeakMemory
meter = PeakMemory()
meter.start()
before = meter.peak()
held = numpy.ones(2**25)
with meter.behind_torch():
    del held
print(meter.peak() - before)
"""


def test_of_a_process_without_a_device() -> None:
    """In a new process: where the system forbids to reset a peak, it is the peak of the whole process."""
    said = subprocess.run([sys.executable, "-c", HOLDS_256_MIB], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert 0.2 * GIB < float(said) < 0.35 * GIB


def test_both_are_told_by_phase() -> None:
    assert build_memory_metrics({"train": 3 * GIB}, {"train": 2 * GIB}) == {"memory/train_peak_gib": 3.0, "memory/train_predicted_gib": 2.0}
