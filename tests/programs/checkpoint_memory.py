"""What saving and loading a training state takes beside it: checkpoint_memory.py STAGE DTYPE LAYERS FOLDER OUT. Writes the bytes of the
state, of its largest tensor, how far the memory of each rank rises in `save` and in `load`, and whether the state comes back."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from rlkit.engines.deepspeed import MOMENTS
from rlkit.profiling.memory_peak import read_peak, reset_peak
from rlkit.run import exit_process
from rlkit.runtime.manifest import CheckpointWriter
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed

WIDTH = 511  # odd: the sizes of weights are no multiple of two ranks
M_MMAP_THRESHOLD = -3  # of malloc.h
stage, dtype, layers = int(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3])
folder, out = Path(sys.argv[4]), Path(sys.argv[5])
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)  # what is freed goes back: no holes in the heap, which would count
ranks = Ranks()
module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(layers)))
with deepspeed(stage).shard_on_load(dtype):
    backend = deepspeed(stage).build(module, dtype)


def step() -> None:
    backend.backward(backend.module(torch.ones(1, WIDTH, dtype=dtype)).sum())
    assert backend.step(1e-3).applied


def measure_rise(action: Callable[[], None]) -> float:
    """Bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    before = read_peak()
    action()
    return read_peak() - before


step()
before = [tensor.clone() for tensor in backend._gather_state(("weight", *MOMENTS))]
writer = CheckpointWriter(folder)
rises = {
    "first save": measure_rise(lambda: backend.save(writer, "first")),  # its libraries are loaded here
    "save": measure_rise(lambda: backend.save(writer, "policy")),
}
step()
rises |= {
    "load": measure_rise(lambda: backend.load(folder, "policy", step)),
}
size = sum(backend.count_elements(parameter) for parameter in backend.named.values())
restored = all(map(torch.equal, before, backend._gather_state(("weight", *MOMENTS))))
everyone = ranks.gather(rises | {"restored": restored})
if ranks.main:
    out.write_text(json.dumps({"parameters": size, "state": 12 * size, "largest": 4 * WIDTH**2, "ranks": everyone}))
dist.barrier()
exit_process(0)
