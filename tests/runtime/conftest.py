"""A machine whose GPUs and programs are files of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.runtime import hardware


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One without GPUs and without programs: folders `driver/gpus`, `dev` and `bin`."""
    for name in ("driver/gpus", "dev", "bin"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "driver" / "gpus")
    monkeypatch.setattr(hardware, "DEVICES", tmp_path / "dev")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CUDA_VISIBLE_DEVICES", "CC"):
        monkeypatch.delenv(name, raising=False)
    hardware.gpu_memory.cache_clear()
    yield tmp_path
    hardware.gpu_memory.cache_clear()
