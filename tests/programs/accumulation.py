"""How far gradients of a bfloat16 model are from float64: accumulation.py OUT STAGE..., on any number of ranks.

By stage: of one large micro-batch, of MICRO_BATCHES small ones that add up in float32 and in bfloat16, each relative to the whole gradient,
and whether DeepSpeed's overlapping of communication changes a bit. The optimizer is gradient descent, read off the float32 masters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.engines.deepspeed_config import prepare_deepspeed
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed

MICRO_BATCHES, ROWS, STEP = 96, 8, 1e4


class Descent(torch.optim.SGD):
    def __init__(self, parameters: Any, lr: float, **rest: Any) -> None:
        super().__init__(parameters, lr=lr)


def build_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).bfloat16()


def loss_of(module: nn.Module, rows: Tensor, wanted: Tensor) -> Tensor:
    return (module(rows).double() - wanted).square().sum() / (MICRO_BATCHES * ROWS)


def gradient(ranks: Ranks, stage: int, parts: int, wide: bool, **extra: Any) -> Tensor:
    """Through DeepSpeed, of the rows in so many micro-batches, which the ranks share."""
    from deepspeed.utils import safe_get_full_fp32_param

    module = build_module()
    backend = deepspeed(stage, ranks.device, wide=wide, norm=1e9, extra={"zero_optimization": extra}).build(module, torch.bfloat16)

    def masters() -> Tensor:
        return torch.cat([safe_get_full_fp32_param(p).double().flatten() for p in backend.named.values()])

    before = masters()
    pairs = list(zip(rows.chunk(parts), wanted.chunk(parts), strict=True))
    for x, y in pairs[ranks.rank :: ranks.world] if parts > 1 else [(rows[ranks.rank :: ranks.world], wanted[ranks.rank :: ranks.world])]:
        backend.backward(loss_of(backend.module, x, y).float())
    assert backend.step(STEP).applied
    return (before - masters()) / STEP


prepare_deepspeed()  # its import derives classes from the true AdamW
torch.optim.AdamW = Descent  # type: ignore[misc]
ranks = Ranks()
torch.manual_seed(1)
rows, wanted = torch.randn(MICRO_BATCHES * ROWS, 32).bfloat16(), torch.rand(MICRO_BATCHES * ROWS, 8).double()
module = build_module().double()
loss_of(module, rows.double(), wanted).backward()
truth = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
result = {}
for stage in map(int, sys.argv[2:]):
    found = {
        "one": gradient(ranks, stage, 1, True),
        "float32": gradient(ranks, stage, MICRO_BATCHES, True),
        "bfloat16": gradient(ranks, stage, MICRO_BATCHES, False),
    }
    apart = gradient(ranks, stage, MICRO_BATCHES, True, overlap_comm=False)
    result[stage] = {name: float((g - truth).norm() / truth.norm()) for name, g in found.items()}
    result[stage]["overlap"] = torch.equal(apart, found["float32"])
if ranks.main:
    Path(sys.argv[1]).write_text(json.dumps(result))
ranks.barrier()
exit_process(0)
