"""GPUs as the kernel and nvidia-smi show them; both are stood in for, so that it runs on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.runtime import hardware


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without GPUs: folders `driver`, `dev` and `bin`."""
    for name in ("driver", "dev", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(hardware, "DEVICES", tmp_path / "dev")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware.gpu_memory.cache_clear()
    yield tmp_path
    hardware.gpu_memory.cache_clear()


def test_a_machine_without_gpus(machine: Path) -> None:
    assert (hardware.count_gpus(), hardware.count_visible_gpus(), hardware.gpu_memory()) == (0, 0, None)


def test_gpus_are_counted_in_the_driver_else_in_dev(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl"):
        (machine / "dev" / name).touch()
    assert hardware.count_gpus() == 3
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (machine / "driver" / name).mkdir()
    assert hardware.count_gpus() == hardware.count_visible_gpus() == 2
    for visible, count in (("1", 1), ("0,1", 2), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert (hardware.count_visible_gpus(), hardware.count_gpus()) == (count, 2)


@pytest.mark.parametrize(("program", "size"), [("echo 81559; echo 40960", 81559 * 2**20), ("exit 9", None), (None, None)])
def test_the_memory_of_the_first_gpu(machine: Path, program: str | None, size: float | None) -> None:
    """In MiB from nvidia-smi; None where it fails or is missing."""
    (machine / "driver" / "0000:01:00.0").mkdir()
    if program is not None:
        (machine / "bin" / "nvidia-smi").write_text(f"#!/bin/bash\n{program}\n")
        (machine / "bin" / "nvidia-smi").chmod(0o755)
    assert hardware.gpu_memory() == size
