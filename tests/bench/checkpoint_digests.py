"""What the digests of a checkpoint cost beside writing it alone: python -m tests.bench.checkpoint_digests [FOLDER]"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from rlkit.engines.tensor_file import write_tensors
from rlkit.runtime.checkpoint import fsync_path
from rlkit.runtime.manifest import CheckpointWriter, find_damage, write_manifest

REPEATS = 5
TENSORS = {f"tensor {i}": torch.randn(1 << 22) for i in range(32)}  # 512 MiB


class PlainWriter:
    """CheckpointWriter without digests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with (self.folder / name).open("xb") as file:
            yield file


def time_write(folder: Path, writer: CheckpointWriter | PlainWriter) -> float:
    """Seconds until the file is on the disk."""
    start = time.perf_counter()
    with writer.create("policy.safetensors") as file:
        write_tensors(file, {name: tensor.shape for name, tensor in TENSORS.items()}, TENSORS.values())
    fsync_path(folder / "policy.safetensors")
    return time.perf_counter() - start


def time_check(folder: Path, writer: CheckpointWriter) -> float:
    write_manifest(folder, 1, writer.digests)
    start = time.perf_counter()
    assert find_damage(folder, 1) == []
    return time.perf_counter() - start


def measure(parent: Path) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {"written": [], "written with digests": [], "checked": []}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory(dir=parent) as name:
            seconds["written"].append(time_write(Path(name), PlainWriter(Path(name))))
        with tempfile.TemporaryDirectory(dir=parent) as name:
            writer = CheckpointWriter(Path(name))
            seconds["written with digests"].append(time_write(Path(name), writer))
            seconds["checked"].append(time_check(Path(name), writer))
    return {kind: statistics.median(values) for kind, values in seconds.items()}


if __name__ == "__main__":
    found = measure(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("0.5 GiB: " + ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in found.items()))
    print(f"digests cost {found['written with digests'] / found['written'] - 1:+.0%}")
