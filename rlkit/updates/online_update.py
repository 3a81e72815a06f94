"""The updates of a step of an online algorithm: outputs of models before the update, losses over micro-batches, optimizer steps.

B samples of this rank, T tokens of the longest of their completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from rlkit.algorithms import Algorithm, CriticObjective, Needs
from rlkit.engines.base import Critic, Learner, Policy, Scores
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.engines.transfer import copy_to_device
from rlkit.metrics import Metrics, Sum, mean_over_mask, merge
from rlkit.ops.batching import measure_sample
from rlkit.ops.masking import count_units, token_weights, weighted_sum
from rlkit.runtime.ranks import Ranks
from rlkit.types import Batch, Credit, MicroBatch, Sample, Signals
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.optimizer_step import (
    LearnerLoss,
    UpdateCount,
    backward_micro_batches,
    run_in_lockstep,
    split_in_lockstep,
    step_optimizers,
)
from rlkit.updates.token_recorder import TokenRecorder


@dataclass(frozen=True)
class OnlineUpdater:
    """What an update needs, built once."""

    policy: Policy
    reference: Scores | None
    algorithm: Algorithm
    schedule: Schedule  # of the policy, from its first update
    logprob_check: LogprobCheck
    ranks: Ranks
    passes: int
    minibatches: int  # of one pass
    tokens_per_micro_batch: int
    fixed_length: int  # tokens, the divisor of the reduction `fixed_length`
    max_skipped_updates: int
    teacher: Scores | None = None
    critic: Critic | None = None
    critic_schedule: Schedule | None = None
    critic_warmup: int = 0  # updates at the start in which only the critic learns
    recorder: TokenRecorder = field(default_factory=TokenRecorder)

    @property
    def needs(self) -> Needs:
        return self.algorithm.needs(self.passes * self.minibatches)

    def observe(self, batch: Batch) -> tuple[Signals, Metrics]:
        """Outputs of models on the batch before the update, as far as the algorithm needs them."""
        old = reference = values = teacher = None
        metrics: Metrics = {}
        if self.needs.old_logprobs:
            old = self._score(batch, self.policy, self.recorder)
            metrics = self.ranks.merge_metrics(self.logprob_check.compare(old, batch.rollout_logprobs, batch.own))
            self.logprob_check.check(metrics)  # of all ranks: all of them stop, or none does
        if self.needs.reference:
            assert self.reference is not None, "assembly loads what the algorithm needs"
            reference = self._score(batch, self.reference, TokenRecorder())
        if self.needs.teacher:
            assert self.teacher is not None, "assembly loads what the algorithm needs"
            teacher = self._score(batch, self.teacher, TokenRecorder())
        if self.critic:
            values = run_in_lockstep(self.critic.values, batch.samples, batch.mask.shape[1], self.tokens_per_micro_batch, self.ranks)
        return Signals(old, reference, values, teacher), metrics

    def _score(self, batch: Batch, model: Scores, recorder: TokenRecorder) -> Tensor:
        """Log-probs [B, T] of the batch by a model."""

        def compute(samples: list[Sample], width: int) -> Tensor:
            logprobs, entropies = model.logprobs(samples, width)
            recorder.keep(samples, logprobs, entropies)
            return logprobs

        return run_in_lockstep(compute, batch.samples, batch.mask.shape[1], self.tokens_per_micro_batch, self.ranks)

    def update(self, batch: Batch, signals: Signals, credit: Credit, count: UpdateCount) -> tuple[Metrics, UpdateCount]:
        """All optimizer steps of a step."""
        parts: list[Metrics] = []
        for _ in range(self.passes):
            for minibatch in range(self.minibatches):
                rows = torch.nonzero(batch.minibatch == minibatch).flatten().tolist()
                metrics, count = self._update_minibatch(batch, signals, credit, rows, count)
                parts.append(metrics)
        return merge(parts), count

    def _update_minibatch(
        self, batch: Batch, signals: Signals, credit: Credit, rows: list[int], count: UpdateCount
    ) -> tuple[Metrics, UpdateCount]:
        """One minibatch: losses over micro-batches, then one optimizer step, or none where no sample has a signal."""
        totals = self.ranks.all_reduce_sum(count_units(batch.mask[rows]))
        warms_up = count.updates < self.critic_warmup
        metrics = self.accumulate_gradient(batch, signals, credit, rows, totals, warms_up)
        if metrics is None:
            return {"updates_without_signal": Sum(1.0)}, replace(count, updates=count.updates + 1)
        if signals.old_logprobs is None:
            self.logprob_check.check(metrics)  # before the weights change
        learners: list[tuple[Learner, float, str]] = []
        if not warms_up:
            learners.append((self.policy, self.schedule.lr(count.updates - self.critic_warmup), ""))
        if self.critic and self.critic_schedule:
            learners.append((self.critic, self.critic_schedule.lr(count.updates), "critic/"))
        metrics, applied = step_optimizers(metrics, learners)
        return metrics | {"updates_without_signal": Sum(0.0)}, count.add(applied, self.max_skipped_updates)

    def accumulate_gradient(
        self, batch: Batch, signals: Signals, credit: Credit, rows: list[int], totals: Tensor, warms_up: bool = False
    ) -> Metrics | None:
        """Backward over the rows; metrics of all ranks, None where no rank has a row with a signal.

        totals: of `count_units`, of the minibatch on all ranks. warms_up: only the critic learns.
        """
        active = select_rows_with_signal(self, credit, rows)
        plan = split_in_lockstep([measure_sample(batch.samples[i]) for i in active], self.tokens_per_micro_batch, self.ranks)
        losses = [] if warms_up else [LearnerLoss(self.policy, partial(self._policy_loss, batch, signals, credit, totals))]
        if self.critic:
            losses.append(LearnerLoss(self.critic, partial(self._value_loss, self.critic, batch, signals, credit, totals), "critic/"))
        return backward_micro_batches([[active[i] for i in items] for items in plan], losses, self.ranks)

    def _policy_loss(self, batch: Batch, signals: Signals, credit: Credit, totals: Tensor, chosen: list[int]) -> tuple[Tensor, Metrics]:
        """The share of the chosen rows in the policy's loss."""
        samples = [batch.samples[i] for i in chosen]
        width = max(len(s.tokens) for s in samples)
        logprobs, entropy = self.policy.logprobs(samples, width)  # [B, T]
        if signals.old_logprobs is None:
            self.recorder.keep(samples, logprobs, entropy)

        old, ref = signals.old_logprobs, signals.ref_logprobs
        grids = [batch.mask, batch.own, batch.rollout_logprobs, credit.advantages, *(grid for grid in (old, ref) if grid is not None)]
        (totals, mask, own, rollout_logprobs, advantages, *scored) = cut_rows(grids, chosen, width, totals, logprobs.device)
        rows = MicroBatch(
            mask=mask,
            logprobs=logprobs,
            entropy=entropy,
            old_logprobs=logprobs.detach() if old is None else scored[0],
            rollout_logprobs=rollout_logprobs,
            ref_logprobs=None if ref is None else scored[-1],
            advantages=advantages,
            kl_coef=credit.kl_coef,
        )
        losses, metrics = self.algorithm.compute_policy_loss(rows)  # [B, T]
        metrics |= {"entropy": mean_over_mask(entropy, mask)}
        if signals.old_logprobs is None:
            metrics |= self.logprob_check.compare(rows.old_logprobs, rollout_logprobs, own)
        return self._reduce(losses, mask, totals), metrics

    def _value_loss(
        self, critic: Critic, batch: Batch, signals: Signals, credit: Credit, totals: Tensor, chosen: list[int]
    ) -> tuple[Tensor, Metrics]:
        """The share of the chosen rows in the critic's loss."""
        assert isinstance(self.algorithm, CriticObjective), "assembly loads a critic for an algorithm that trains one"
        assert signals.values is not None and credit.returns is not None, "an algorithm with a critic returns what the critic learns"
        samples = [batch.samples[i] for i in chosen]
        width = max(len(s.tokens) for s in samples)
        values = critic.values(samples, width)  # [B, T]
        grids = [batch.mask, signals.values, credit.returns]
        totals, mask, old_values, returns = cut_rows(grids, chosen, width, totals, values.device)
        losses, metrics = self.algorithm.compute_value_loss(values, old_values, returns, mask)  # [B, T]
        return self._reduce(losses, mask, totals), metrics

    def _reduce(self, losses: Tensor, mask: Tensor, totals: Tensor) -> Tensor:
        weights = token_weights(mask, self.algorithm.reduction, totals, self.fixed_length)
        return weighted_sum(losses, weights)


def cut_rows(grids: Sequence[Tensor], chosen: list[int], width: int, totals: Tensor, device: torch.device) -> list[Tensor]:
    """The totals, and the chosen rows of grids [B, T], each [b, width], on a device."""
    index = torch.tensor(chosen)
    return copy_to_device([totals, *(grid[:, :width].index_select(0, index) for grid in grids)], device)


def select_rows_with_signal(updater: OnlineUpdater, credit: Credit, rows: Sequence[int]) -> list[int]:
    """The rows whose gradient is not zero."""
    if not updater.algorithm.inert_without_advantage:
        return list(rows)
    moves = credit.advantages.any(-1).tolist()  # [B]
    return [i for i in rows if moves[i]]
