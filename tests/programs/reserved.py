"""The largest micro-batch in little address space, and updates with it: reserved.py MIB ROWS OUT.

Writes what is found, and how far two updates of two micro-batches of so many rows come in the same space.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlkit.engines.learners import ModuleLearner
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sample
from rlkit.updates.micro_batch_fit import StepShape, largest_micro_batch
from tests.backends import deepspeed

M_MMAP_THRESHOLD = -3  # of malloc.h
WIDE, LAYERS = 768, 6


class Rows(ModuleLearner):
    """3.5 million weights in float32: 13.5 MiB, as much of gradients and twice as much of moments; 3 KiB of activations a row and layer."""

    name = "rows"

    def __init__(self) -> None:
        module = nn.Sequential(*(nn.Sequential(nn.Linear(WIDE, WIDE, bias=False), nn.Tanh()) for _ in range(LAYERS)))
        self.backend = deepspeed(1).build(module, torch.float32)

    def forward(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        output: Tensor = module(torch.ones(sum(len(s.prompt) + len(s.tokens) for s in samples), WIDE))
        return output


ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # what is freed goes back: the heap keeps no room that the limit would not see
ranks = Ranks()
learner, rows = Rows(), int(sys.argv[2])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
found = largest_micro_batch([learner], rows, StepShape(8, 8, 1, 10**9, 16), bool)
passes = 0
try:
    for _ in range(2):
        for _ in range(2):
            learner.backward(learner.backend.module(torch.ones(found[0], WIDE)).sum())
            passes += 1
        assert learner.step(1e-3).applied
    ended = "well"
except RuntimeError as error:
    ended = str(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
Path(sys.argv[3]).write_text(json.dumps({"found": found, "passes": passes, "ended": ended}))
exit_process(0)
