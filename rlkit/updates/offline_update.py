"""The updates of a step of an offline algorithm: losses over micro-batches of units, then an optimizer step. A policy or a reward model.

Every rank has the same units and works on its share. B completions, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.algorithms import OfflineAlgorithm
from rlkit.engines.base import Learner
from rlkit.engines.transfer import copy_to_device
from rlkit.metrics import Metrics
from rlkit.ops.batching import SampleLength, assign_minibatches, balance_costs, measure_sample
from rlkit.ops.masking import pad_rows, token_weights, uniform_weights, weighted_sum
from rlkit.ops.preference import kto_baseline
from rlkit.runtime.ranks import Ranks
from rlkit.types import OfflineMicroBatch, Sample
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.optimizer_step import LearnerLoss, UpdateCount, backward_micro_batches, split_in_lockstep, step_optimizers
from rlkit.updates.reference_cache import ReferenceLogprobs
from rlkit.updates.units import Unit, build_sample


@dataclass(frozen=True)
class OfflineUpdater:
    """What an update needs, built once."""

    learner: Learner
    outputs: Callable[[Sequence[Sample], int], Tensor]  # of the learner: log-probs [B, T] of tokens, or one score [B, 1] a completion
    algorithm: OfflineAlgorithm
    schedule: Schedule
    ranks: Ranks
    passes: int
    minibatches: int  # of one pass
    tokens_per_micro_batch: int
    max_skipped_updates: int

    def split_minibatches(self, units: list[Unit]) -> list[list[Unit]]:
        """The minibatches of a pass."""
        parts = assign_minibatches(len(units), self.minibatches)
        return [[u for u, part in zip(units, parts, strict=True) if part == m] for m in range(self.minibatches)]

    def select_share(self, units: Sequence[Unit]) -> list[int]:
        """The indices of the units that this rank works on."""
        owner = balance_costs([u.tokens for u in units], self.ranks.world)
        return [i for i, rank in enumerate(owner) if rank == self.ranks.rank]

    def update(self, units: list[Unit], reference: ReferenceLogprobs | None, count: UpdateCount) -> tuple[Metrics, UpdateCount]:
        """One minibatch and its optimizer step."""
        metrics = self.accumulate_gradient(units, reference)
        metrics, applied = step_optimizers(metrics, [(self.learner, self.schedule.lr(count.updates), "")])
        return metrics, count.add(applied, self.max_skipped_updates)

    def accumulate_gradient(self, units: list[Unit], reference: ReferenceLogprobs | None) -> Metrics:
        """Backward over this rank's share; metrics of all ranks."""
        minibatch = OfflineMinibatch(self, units, reference)
        return backward_micro_batches(minibatch.plan(), [LearnerLoss(self.learner, minibatch.loss)], self.ranks) or {}


class OfflineMinibatch:
    """The units of a minibatch, or the held-out ones, and this rank's share of them."""

    def __init__(self, updater: OfflineUpdater, units: list[Unit], reference: ReferenceLogprobs | None) -> None:
        self.updater, self.units, self.reference = updater, units, reference
        self.share = updater.select_share(units)
        tokens = sum(int(s.mask.sum()) for u in units for s in u.samples)
        self.totals = torch.tensor([tokens, sum(len(u.samples) for u in units)], dtype=torch.float64)  # as of count_units
        self.baseline = self._compute_baseline() if updater.algorithm.baseline and reference else None

    def samples_for_reference(self) -> Iterator[Sample]:
        """The completions whose log-probs by the reference are needed."""
        for unit in self.units:
            yield from unit.samples
        if self.updater.algorithm.baseline:
            yield from self._mismatch_samples(range(len(self.units)))

    def plan(self) -> list[list[int]]:
        """Micro-batches as indices of units, equally many on all ranks."""
        sizes = [SampleLength(i, 0, self.units[i].tokens) for i in self.share]
        plan = split_in_lockstep(sizes, self.updater.tokens_per_micro_batch, self.updater.ranks)
        return [[self.share[k] for k in items] for items in plan]

    def loss(self, chosen: list[int]) -> tuple[Tensor, Metrics]:
        """The share of some units in the loss, and metrics; 0 without units."""
        units = [self.units[i] for i in chosen]
        samples = [s for u in units for s in u.samples]
        width = max((len(s.tokens) for s in samples), default=0)
        outputs = self.updater.outputs(samples, width)  # [B, T]; without samples too: sharded models are gathered on all ranks
        if not samples:
            return outputs.sum() * 0.0, {}
        algorithm = self.updater.algorithm
        mask = pad_rows([s.mask for s in samples], width, False)[:, : outputs.shape[1]]
        desirable = torch.tensor([u.desirable for u in units for _ in u.samples])
        reference = self.reference.look_up(samples) if self.reference else None
        known = [tensor for tensor in (reference, self.baseline) if tensor is not None]
        totals, mask, desirable, *known = copy_to_device([self.totals, mask, desirable, *known], outputs.device)
        rows = OfflineMicroBatch(
            mask=mask,
            outputs=outputs,
            reference=None if reference is None else known[0],
            desirable=desirable,
            baseline=None if self.baseline is None else known[-1],
        )
        losses, metrics = algorithm.compute_losses(rows)
        if algorithm.unit == "token":
            weights = token_weights(mask, "token_mean", totals, 1)
        else:
            weights = uniform_weights(losses, len(self.units))
        return weighted_sum(losses, weights), metrics

    def _mismatch_samples(self, indices: Sequence[int] | range) -> Iterator[Sample]:
        """For each of some units its prompt with a completion of another prompt: that half the rows further on, or the next after it."""
        order = sorted(range(len(self.units)), key=lambda i: self.units[i].samples[0].key)
        rank = {i: p for p, i in enumerate(order)}
        for i in indices:
            own = self.units[i].samples[0]
            start = rank[i] + len(order) // 2  # far away: files have rows of one prompt together
            others = (self.units[order[(start + k) % len(order)]].samples[0] for k in range(len(order)))
            other = next((o for o in others if o.prompt != own.prompt), None)
            if other is not None:
                yield build_sample(own.key.prompt, own.key.draw, -1, own.prompt, tuple(other.tokens.tolist()))

    def _compute_baseline(self) -> Tensor:
        """max(0, mean log(pi / pi_ref)) of completions of other prompts, over all ranks, without gradient."""
        assert self.reference is not None
        samples, updater = list(self._mismatch_samples(self.share)), self.updater
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for items in split_in_lockstep([measure_sample(s) for s in samples], updater.tokens_per_micro_batch, updater.ranks):
                chosen = [samples[i] for i in items]
                outputs = updater.outputs(chosen, max((len(s.tokens) for s in chosen), default=0))
                if chosen:
                    log_ratios = outputs.double().sum(-1).cpu() - self.reference.look_up(chosen)
                    total += torch.stack([log_ratios.sum(), torch.tensor(float(len(chosen)), dtype=torch.float64)])
        return kto_baseline(*updater.ranks.all_reduce_sum(total))
