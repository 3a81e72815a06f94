"""What every update does: micro-batches in lockstep over all ranks, their backward passes, and one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.engines.base import Learner
from rlkit.errors import RunFailed
from rlkit.metrics import Mean, Metrics, Sum, merge
from rlkit.ops.batching import SampleLength, measure_sample, split_micro_batches
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sample


@dataclass(frozen=True)
class UpdateCount:
    """Optimizer steps so far."""

    updates: int = 0  # with the skipped ones: the learning rate depends on it
    skipped_in_a_row: int = 0  # because a gradient was not finite

    def add(self, applied: bool, limit: int) -> UpdateCount:
        """The count with one more update. Raises RunFailed when `limit` updates in a row were skipped."""
        skipped = 0 if applied else self.skipped_in_a_row + 1
        if skipped >= limit:
            raise RunFailed(f"the gradients of {skipped} updates in a row were not finite; a smaller optim.lr may help, or other data")
        return UpdateCount(self.updates + 1, skipped)


@dataclass(frozen=True)
class LearnerLoss:
    """A learner and its loss on the items of a micro-batch: a scalar with gradient, and metrics. `prefix`: of its metrics."""

    learner: Learner
    compute: Callable[[list[int]], tuple[Tensor, Metrics]]
    prefix: str = ""


def split_in_lockstep(sizes: list[SampleLength], budget: int, ranks: Ranks) -> list[list[int]]:
    """Micro-batches of this rank's items, equally many on all ranks: empty ones where it has fewer than others.

    A sequence-parallel group splits the items of all its ranks together, `budget` tokens a rank; of each micro-batch a rank gets its own.
    """
    of_group, first = ranks.gather_sp(sizes)
    plan = split_micro_batches(of_group, budget * ranks.sp_size)
    plan = [[i - first for i in items if 0 <= i - first < len(sizes)] for items in plan]
    return plan + [[] for _ in range(ranks.all_reduce_max(len(plan)) - len(plan))]


def run_in_lockstep(
    outputs: Callable[[list[Sample], int], Tensor], samples: Sequence[Sample], width: int, budget: int, ranks: Ranks
) -> Tensor:
    """Outputs of a model for all samples of this rank, micro-batch by micro-batch, without gradient; [B, width] float32 on the CPU."""
    grid = torch.zeros(len(samples), width)
    plan = split_in_lockstep([measure_sample(s) for s in samples], budget, ranks)
    for number, items in enumerate(plan):
        heartbeat.advance(number, len(plan), "micro-batches")
        grid[items] = outputs([samples[i] for i in items], width).cpu()  # without items too: sharded models are gathered on all ranks
    return grid


def backward_micro_batches(plan: Sequence[list[int]], losses: Sequence[LearnerLoss], ranks: Ranks) -> Metrics | None:
    """Forward and backward of each learner on each micro-batch of a plan in lockstep; metrics of all ranks, None of an empty plan."""
    parts: list[Metrics] = []
    for number, items in enumerate(plan):
        heartbeat.advance(number, len(plan), "micro-batches")
        for loss in losses:
            with loss.learner.enable_grad():
                if not items:
                    loss.learner.idle()
                    continue
                value, metrics = loss.compute(items)
                loss.learner.backward(value)
                parts.append(metrics | {f"{loss.prefix}loss": Sum(value.detach())})
    return ranks.merge_metrics(merge(parts)) if plan else None


def step_optimizers(metrics: Metrics, learners: Sequence[tuple[Learner, float, str]]) -> tuple[Metrics, bool]:
    """One optimizer step of each (learner, learning rate, prefix): the metrics of the update, and whether all steps were applied."""
    all_applied, result = True, dict(metrics)
    for learner, lr, prefix in learners:
        done = learner.step(lr)
        all_applied = all_applied and done.applied
        result |= {f"{prefix}grad_norm": Mean(done.grad_norm, 1.0), f"{prefix}learning_rate": Mean(lr, 1.0)}
    result |= {name: Mean(metrics[name].value, 1.0) for name in ("loss", "critic/loss") if name in metrics}
    return result | {"updates_skipped": Sum(float(not all_applied))}, all_applied
