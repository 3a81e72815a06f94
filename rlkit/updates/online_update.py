"""Learning from a step's batch: what models say before, then minibatches, micro-batches and optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkit.algorithms import Algorithm, Needs
from rlkit.engines.base import Critic, Learner, Policy, Scores
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.errors import RunFailed
from rlkit.metrics import Mean, Metrics, Sum, mean_over_mask, merge
from rlkit.ops.batching import SampleLength, measure_sample, split_micro_batches
from rlkit.ops.masking import count_units, token_weights, weighted_sum
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.types import Batch, Credit, MicroBatch, Sample, Signals
from rlkit.updates.lr_schedule import Schedule


@dataclass(frozen=True)
class OnlineUpdater:
    """What an update needs, built once."""

    policy: Policy
    reference: Scores | None
    algorithm: Algorithm
    schedule: Schedule  # of the policy, from the first update that it has part in
    probe: LogprobCheck
    ranks: Ranks
    passes: int
    minibatches: int  # of one pass
    tokens_per_micro_batch: int
    fixed_length: int  # tokens, what the reduction `fixed_length` divides by
    max_skipped_updates: int
    critic: Critic | None = None
    critic_schedule: Schedule | None = None
    policy_waits: int = 0  # updates at the start in which only the critic learns

    @property
    def needs(self) -> Needs:
        return self.algorithm.needs(self.passes * self.minibatches)


@dataclass(frozen=True)
class UpdateCount:
    """Optimizer steps so far."""

    updates: int = 0  # the skipped ones too: the learning rate follows them
    skipped_in_a_row: int = 0  # whose gradient was not finite

    def after(self, applied: bool, most: int) -> UpdateCount:
        """The count with one more update. Raises RunFailed at the `most`-th in a row that was skipped."""
        skipped = 0 if applied else self.skipped_in_a_row + 1
        if skipped >= most:
            raise RunFailed(f"the gradients of {skipped} updates in a row were not finite; a smaller optim.lr may help, or other data")
        return UpdateCount(self.updates + 1, skipped)


def observe(run: OnlineUpdater, batch: Batch) -> tuple[Signals, Metrics]:
    """What models say of the batch before the update: only what the algorithm needs."""
    old = reference = None
    metrics: Metrics = {}
    if run.needs.old_logprobs:
        old = scored(run, batch, run.policy)
        metrics = run.ranks.merge_metrics(run.probe.compare(old, batch.rollout_logprobs, batch.own))
        run.probe.check(metrics)  # of all ranks: they stop together, or none does
    if run.needs.reference:
        assert run.reference is not None, "assemble loads what the algorithm needs"
        reference = scored(run, batch, run.reference)
    values = None
    if run.critic:
        values = score_batch(run, batch, run.critic.values)
    return Signals(old_logprobs=old, ref_logprobs=reference, values=values), metrics


def scored(run: OnlineUpdater, batch: Batch, model: Scores) -> Tensor:
    """Log-probs [B, T] of the batch by a model."""
    return score_batch(run, batch, lambda samples, width: model.logprobs(samples, width)[0])


def score_batch(run: OnlineUpdater, batch: Batch, said: Callable[[list[Sample], int], Tensor]) -> Tensor:
    """What a model says of the batch [B, T], micro-batch by micro-batch, equally many on all ranks: sharded models gather on all."""
    grid = torch.zeros(batch.mask.shape)
    for chosen in lockstep_micro_batches([measure_sample(s) for s in batch.samples], run.tokens_per_micro_batch, run.ranks):
        heartbeat.beat()
        grid[chosen] = said([batch.samples[i] for i in chosen], batch.mask.shape[1]).cpu()
    return grid


def update(run: OnlineUpdater, batch: Batch, signals: Signals, credit: Credit, count: UpdateCount) -> tuple[Metrics, UpdateCount]:
    """All optimizer steps of a step."""
    seen: list[Metrics] = []
    for _ in range(run.passes):
        for minibatch in range(run.minibatches):
            rows = torch.nonzero(batch.minibatch == minibatch).flatten().tolist()
            metrics, count = update_minibatch(run, batch, signals, credit, rows, count)
            seen.append(metrics)
    return merge(seen), count


def update_minibatch(
    run: OnlineUpdater, batch: Batch, signals: Signals, credit: Credit, rows: list[int], count: UpdateCount
) -> tuple[Metrics, UpdateCount]:
    """One minibatch: losses over micro-batches, then one optimizer step, or none where no sample has a signal."""
    totals = run.ranks.all_reduce_sum(count_units(batch.mask[rows]))
    metrics = gradient(run, batch, signals, credit, rows, totals, waits=count.updates < run.policy_waits)
    if metrics is None:
        return {"updates_without_signal": Sum(1.0)}, replace(count, updates=count.updates + 1)
    if signals.old_logprobs is None:
        run.probe.check(metrics)  # before the optimizer moves
    applied, moved = True, {}
    if count.updates >= run.policy_waits:
        applied, moved = step_optimizer(run.policy, run.schedule.lr(count.updates - run.policy_waits), "")
    if run.critic and run.critic_schedule:
        also, more = step_optimizer(run.critic, run.critic_schedule.lr(count.updates), "critic/")
        applied, moved = applied and also, {**moved, **more}
    metrics |= {f"{role}loss": Mean(metrics[f"{role}loss"].value, 1.0) for role in ("", "critic/") if f"{role}loss" in metrics}
    metrics |= {**moved, "updates_skipped": Sum(float(not applied)), "updates_without_signal": Sum(0.0)}
    return metrics, count.after(applied, run.max_skipped_updates)


def step_optimizer(learner: Learner, lr: float, role: str) -> tuple[bool, Metrics]:
    """One optimizer step: was it applied, and its norm and learning rate."""
    done = learner.step(lr)
    return done.applied, {f"{role}grad_norm": Mean(done.grad_norm, 1.0), f"{role}learning_rate": Mean(lr, 1.0)}


def gradient(
    run: OnlineUpdater, batch: Batch, signals: Signals, credit: Credit, rows: list[int], totals: Tensor, waits: bool = False
) -> Metrics | None:
    """Backward over the rows in micro-batches, equally many on all ranks; metrics of all ranks, None where no rank had work.

    `waits`: the policy does not learn yet, only the critic.
    """
    active = rows_with_signal(run, credit, rows)
    seen: list[Metrics] = []
    for places in lockstep_micro_batches([measure_sample(batch.samples[i]) for i in active], run.tokens_per_micro_batch, run.ranks):
        heartbeat.beat()
        chosen = [active[i] for i in places]
        if not waits:
            with run.policy.training():
                seen.append(backward_micro_batch(run, batch, signals, credit, chosen, totals) if chosen else idle_pass(run.policy))
        if run.critic:
            with run.critic.training():
                seen.append(backward_critic(run, run.critic, batch, signals, credit, chosen, totals) if chosen else idle_pass(run.critic))
    return run.ranks.merge_metrics(merge(seen)) if seen else None


def rows_with_signal(run: OnlineUpdater, credit: Credit, rows: Sequence[int]) -> list[int]:
    """Those of the rows that move anything."""
    if not run.algorithm.inert_without_advantage:
        return list(rows)
    moves = credit.advantages.any(-1).tolist()  # [B]
    return [i for i in rows if moves[i]]


def lockstep_micro_batches(sizes: list[SampleLength], budget: int, ranks: Ranks) -> list[list[int]]:
    """Micro-batches of this rank's items, equally many on all ranks: empty ones where it has fewer than others.

    A crew cuts the items of all its ranks together, `budget` tokens a rank; of each micro-batch a rank gets those that are its own.
    """
    everyones, first = ranks.gather_sp(sizes)
    plan = split_micro_batches(everyones, budget * ranks.sp_size)
    plan = [[i - first for i in items if 0 <= i - first < len(sizes)] for items in plan]
    return plan + [[] for _ in range(ranks.all_reduce_max(len(plan)) - len(plan))]


def idle_pass(learner: Learner) -> Metrics:
    learner.idle()
    return {}


def backward_critic(
    run: OnlineUpdater, critic: Critic, batch: Batch, signals: Signals, credit: Credit, chosen: list[int], totals: Tensor
) -> Metrics:
    """Forward, value loss, backward of the chosen rows."""
    assert signals.values is not None and credit.returns is not None, "an algorithm with a critic says what the critic learns"
    width = max(len(batch.samples[i].tokens) for i in chosen)
    seen = critic.values([batch.samples[i] for i in chosen], width)  # [B, T]
    mask, before, returned = (grid[chosen, :width].to(seen.device) for grid in (batch.mask, signals.values, credit.returns))
    losses, metrics = run.algorithm.compute_value_loss(seen, before, returned, mask)  # [B, T]
    weights = token_weights(mask, run.algorithm.reduction, totals.to(seen.device), run.fixed_length)
    loss = weighted_sum(losses, weights)
    critic.backward(loss)
    return {**metrics, "critic/loss": Sum(float(loss.detach()))}


def backward_micro_batch(run: OnlineUpdater, batch: Batch, signals: Signals, credit: Credit, chosen: list[int], totals: Tensor) -> Metrics:
    """Forward, loss, backward of the chosen rows."""
    width = max(len(batch.samples[i].tokens) for i in chosen)
    logprobs, entropy = run.policy.logprobs([batch.samples[i] for i in chosen], width)  # [B, T]
    device = logprobs.device

    def cut(grid: Tensor) -> Tensor:
        return grid[chosen, :width].to(device)

    mask = cut(batch.mask)
    rows = MicroBatch(
        mask=mask,
        logprobs=logprobs,
        entropy=entropy,
        old_logprobs=logprobs.detach() if signals.old_logprobs is None else cut(signals.old_logprobs),
        rollout_logprobs=cut(batch.rollout_logprobs),
        ref_logprobs=None if signals.ref_logprobs is None else cut(signals.ref_logprobs),
        advantages=cut(credit.advantages),
        kl_coef=credit.kl_coef,
    )
    losses, metrics = run.algorithm.compute_policy_loss(rows)  # [B, T]
    weights = token_weights(mask, run.algorithm.reduction, totals.to(device), run.fixed_length)
    loss = weighted_sum(losses, weights)
    run.policy.backward(loss)
    metrics |= {"loss": Sum(float(loss.detach())), "entropy": mean_over_mask(entropy, mask)}
    if signals.old_logprobs is None:
        metrics |= run.probe.compare(rows.old_logprobs, rows.rollout_logprobs, cut(batch.own))
    return metrics
