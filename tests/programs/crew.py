"""What two ranks say and learn that share their rows, in float64: crew.py FILE, under torchrun.

For each model, and each way of dealing samples to the ranks: the largest difference of log-probs and entropies from those of each sample
alone, the distance of the gradient, and how many tokens went through each rank's MLPs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit import run
from rlkit.engines.heads import TokenScorer, compute_logprobs
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.engines.training_shape import checkpoint_layers
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sample
from tests.engines.test_packing import CPU, TEMPERATURE, alone, apart, model_of, samples_of

MODELS: list[tuple[str, bool, dict[str, Any], int]] = [  # kind, do samples share a prompt, what is different, every n-th layer recomputed
    ("qwen3", False, {}, 0),
    ("qwen3", True, {}, 1),
    ("qwen3", False, {"num_key_value_heads": 1}, 1),  # fewer heads of keys than ranks
    ("qwen2", False, {}, 0),
    ("mistral", False, {}, 0),
    ("llama", False, {}, 2),
]
DEALS: dict[str, Callable[[int, int], bool]] = {  # does sample i fall to a rank?
    "in turn": lambda i, rank: i % 2 == rank,
    "all to the second": lambda i, rank: rank == 1,
    "nothing": lambda i, rank: False,
}
SLOPES = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)  # of log-probs and entropies


def loss_of(grids: Sequence[Tensor], rows: list[int]) -> Tensor:
    return (torch.stack(list(grids)) * SLOPES[:, rows]).sum()


def on_own(model: Any, samples: list[Sample]) -> list[Tensor]:
    """Log-probs and entropies [5, 9] of each sample alone, 0 beyond a completion."""
    said = [alone(model, sample) for sample in samples]
    return [torch.stack([torch.nn.functional.pad(row, (0, 9 - len(row))) for row in kind]) for kind in zip(*said, strict=True)]


def gradient(model: Any) -> list[Tensor]:
    found = [weights.grad if weights.grad is not None else torch.zeros_like(weights) for weights in model.parameters()]
    model.zero_grad()
    return found


def main(out: Path) -> None:
    ranks, seen = Ranks(1, 2), {}
    sp_group = SequenceParallelGroup(ranks.sp_group)
    for kind, shared, more, recompute in MODELS:
        model, samples = model_of(kind, **more), samples_of(shared=shared)
        told = on_own(model, samples)
        loss_of(told, list(range(5))).backward()
        wanted = gradient(model)
        checkpoint_layers(model, recompute) if recompute else None
        scorer, passed = TokenScorer(model, sp_group), list[int]()
        model.model.layers[0].mlp.register_forward_pre_hook(lambda module, given, passed=passed: passed.append(given[0].shape[1]))
        for deal, falls in DEALS.items():
            mine = [i for i in range(5) if falls(i, ranks.rank)]
            grids = compute_logprobs(scorer, [samples[i] for i in mine], 9, TEMPERATURE, CPU, sp_group)
            worst = max(float((grid - own[mine]).abs().max()) if mine else 0.0 for grid, own in zip(grids, told, strict=True))
            loss_of(grids, mine).backward()
            found = gradient(model)
            for slope in found:
                dist.all_reduce(slope)
            far = apart(wanted, found) if deal != "nothing" else float(torch.cat([slope.flatten() for slope in found]).abs().max())
            seen[kind, shared, tuple(more.items()), deal] = ranks.gather((worst, far, passed[0]))
            passed.clear()
    if ranks.main:
        torch.save(seen, out)
    ranks.barrier()


main(Path(sys.argv[1]))
run.exit_process(0)
