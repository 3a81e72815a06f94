"""What is offloaded comes back to the last bit, and has left the device in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rlkit.engines.bit_sums import sum_bits
from rlkit.engines.offload import CpuOffload
from tests.gpu.kernels import find_device
from tests.gpu.table import Measured


def check_round_trip(small: bool, folder: Path) -> Measured:
    """8 GiB in tensors of many sizes, with views and a tensor that stays, twice; on a work stream that has just written them."""
    device, total = find_device(small), 2**22 if small else 2**33
    draw = torch.Generator(device).manual_seed(0)
    whole = [torch.randn(total // 4 // parts, generator=draw, device=device) for parts in (2, 4, 8, 16, 33)]
    stays = torch.randn(1000, generator=draw, device=device)
    offload = CpuOffload(lambda: [*whole, whole[0][100:200], stays], keep=lambda: [stays])
    passed, seconds, freed = True, [], 0.0
    for _ in range(2):
        for tensor in whole:
            tensor.add_(1.0)  # still under way when copying is asked for
        before = sum_parts((*whole, stays))
        held = measure_allocated(device)
        begun = time.perf_counter()
        offload.offload()
        freed = held - measure_allocated(device)
        offload.reload()
        after = sum_parts((*whole, stays))
        seconds.append(time.perf_counter() - begun)
        passed = passed and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    size = sum(tensor.nbytes for tensor in whole)
    left = device.type == "cpu" or freed >= 0.99 * size
    figures: dict[str, float | str] = {"GiB": size / 2**30, "freed GiB": freed / 2**30}
    figures |= {"first GiB/s": 2 * size / 2**30 / seconds[0], "second GiB/s": 2 * size / 2**30 / seconds[1]}
    return Measured(figures, "the same checksums twice; all of it leaves the device", passed and left)


def sum_parts(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sums of bits of 64 parts of each, in their order."""
    return [sum_bits(part) for tensor in tensors for part in tensor.chunk(64)]


def measure_allocated(device: torch.device) -> float:
    """Bytes that torch holds on a GPU."""
    if device.type == "cpu":
        return 0.0
    torch.cuda.synchronize()
    return float(torch.cuda.memory_allocated())
