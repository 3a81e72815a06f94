"""Address space that an update takes under ZeRO: zero_memory.py WORLD OUT STAGE:DTYPE:(float32|own|offload)...

The last of gradients; offload: in the dtype of the weights, with an optimizer on the host, which on a CPU is the same memory.

Of one process of WORLD, whose collectives do nothing: what a first update leaves beside the module; and beside that, at the peak of three
backward passes and of the step after them. With each, what ZeroMemory predicts. A process that is forked counts its own peak from there on.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from rlkit.profiling import zero_estimate
from rlkit.run import exit_process
from tests.backends import deepspeed

M_MMAP_THRESHOLD = -3  # of malloc.h
EXTRA: dict[str, Any] = json.loads(os.environ.get("ZERO_EXTRA", "{}"))


def read_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def fork(measure: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What `measure` returns in a copy of this process, which ends there."""
    read, write = os.pipe()
    if os.fork() == 0:
        with os.fdopen(write, "w") as out:
            json.dump(measure(), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as found:
        text = found.read()
    assert os.wait()[1] == 0
    result: dict[str, int] = json.loads(text)
    return result


def fill_holes() -> list[torch.Tensor]:
    """Blocks that fill what is free inside the heap: malloc takes a tensor from there before it maps one, and the sizes would miss it."""
    blocks: list[torch.Tensor] = []
    for size in (2**power for power in range(23, 15, -1)):
        grown = 0
        while grown < size:
            before = read_bytes("VmSize")
            blocks.append(torch.empty(size, dtype=torch.uint8))
            grown = read_bytes("VmSize") - before
    return blocks


def build_module(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(1024, n, bias=False) for n in (1024,) * 17), nn.Linear(1024, 4096, bias=False)).to(dtype)


def backward(backend: Any, dtype: torch.dtype) -> None:
    backend.backward(backend.module(torch.ones(1, 1024, dtype=dtype)).float().sum() / 1000)


def measure(stage: int, dtype: torch.dtype, gradients: str) -> dict[str, int]:
    module = build_module(dtype)
    before = read_bytes("VmSize")
    factory = deepspeed(stage, wide=gradients == "float32", offload=gradients == "offload", extra=EXTRA)
    backend = factory.build(module, dtype)
    backward(backend, dtype)
    backend.step(1e-3)
    gc.collect()
    base = read_bytes("VmSize")

    def step() -> dict[str, int]:
        backend.step(1e-3)
        return {"step": read_bytes("VmPeak") - base}

    def passes() -> dict[str, int]:
        for _ in range(3):
            backward(backend, dtype)
        return {"backward": read_bytes("VmPeak") - base, "kept": read_bytes("VmSize") - base} | fork(step)

    memory = backend.memory
    sizes = {
        "gradients": memory.gradients,
        "reduction": memory.reduction,
        "predicted_step": memory.step,
        "incoming": memory.incoming,
        "state": base - before,
        "predicted_state": memory.fixed + (memory.offloaded if memory.offload else memory.state),
    }
    return fork(passes) | {name: int(size) for name, size in sizes.items()}


zero_estimate.REDUCE_BUCKET, zero_estimate.OPTIMIZER_BLOCK = 2**21, 2**22  # of 21 million weights, of which the largest tensor has 2**22
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # a tensor has its own address space
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=int(sys.argv[1]))
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": sys.argv[1]}
first = deepspeed(1).build(nn.Linear(8, 8), torch.float32)  # what DeepSpeed loads at its first use belongs to no case
first.backward(first.module(torch.ones(1, 8)).sum())
first.step(1e-3)
holes = fill_holes()
result = {}
for case in sys.argv[3:]:
    number, name, gradients = case.split(":")
    result[case] = fork(partial(measure, int(number), getattr(torch, name), gradients))
Path(sys.argv[2]).write_text(json.dumps(result))
exit_process(0)
