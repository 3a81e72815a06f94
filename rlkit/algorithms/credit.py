"""The steps from rewards to advantages that algorithms share: the KL in the reward, all samples of the step, whitening over all ranks.

B samples of this rank, N of the step, T tokens. Sums are in float64; the last step rounds to float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.algorithms.base import Peers, State
from rlkit.algorithms.objective import KLState, Objective
from rlkit.metrics import Mean, Metrics, mean_of
from rlkit.ops import kl, returns
from rlkit.types import Batch, Credit, Signals

ROUNDING = 1e-10  # of the mean: a smaller spread is that of equal numbers added up in some order


@dataclass(frozen=True, eq=False)
class KLPenalty:
    """What is subtracted from the rewards for the KL to the reference, and the coefficient of the next step."""

    tokens: Tensor  # [B, T] float64, kl_coef k1 where the KL is in the reward, else 0
    kl_coef: float | None  # of this step, None where it is fixed
    state: State
    metrics: Metrics

    @property
    def samples(self) -> Tensor:
        """[B] float64, over all tokens of a completion."""
        return self.tokens.sum(-1)


def compute_kl_penalty(config: Objective, batch: Batch, signals: Signals, state: State, peers: Peers) -> KLPenalty:
    """The KL's part of the rewards; adapts the coefficient where it has a target (arXiv 1909.08593)."""
    nothing = torch.zeros(batch.mask.shape, dtype=torch.float64)
    watched = config.kl_coef > 0.0 and (config.kl_in == "reward" or config.kl_target is not None)
    if not watched:
        return KLPenalty(nothing, None, state, {})
    assert signals.old_logprobs is not None and signals.ref_logprobs is not None, "the trainer computes what `needs` asks for"
    k1 = torch.where(batch.mask, kl.k1(signals.old_logprobs.double(), signals.ref_logprobs.double()), nothing)  # [B, T]
    total, tokens = peers.all_reduce_sum(torch.stack([k1.sum(), batch.mask.sum().double()])).tolist()
    metrics: Metrics = {"kl": Mean(total, tokens)} if config.kl_in == "reward" else {}
    coef = state.kl_coef if isinstance(state, KLState) else config.kl_coef
    if config.kl_target is not None:
        metrics["kl_coef"] = Mean(coef, 1.0)
        if tokens:  # a step without tokens has no KL
            state = KLState(kl.adapt_coefficient(coef, total / batch.size, config.kl_target))
    penalties = coef * k1 if config.kl_in == "reward" else nothing
    return KLPenalty(penalties, coef if config.kl_target is not None else None, state, metrics)


@dataclass(frozen=True, eq=False)
class StepRewards:
    """The rewards of all samples of a step, in its order; the same on every rank."""

    rewards: Tensor  # [N] float64
    valid: Tensor  # [N] bool
    group: Tensor  # [N] int64
    groups: int

    @property
    def metrics(self) -> Metrics:
        """The share of groups whose rewards are all the same."""
        alike = returns.group_spread_is_zero(self.rewards, self.valid, self.group, self.groups)
        return {"frac_reward_zero_std": mean_of(alike.double().tolist())}


def gather_step_rewards(batch: Batch, rewards: Tensor, peers: Peers) -> StepRewards:
    """rewards [B] of this rank's samples -> those of all, however the groups are split over ranks."""
    group = peers.gather_by_index(batch.group.double(), batch.index, batch.size).long()
    return StepRewards(
        rewards=peers.gather_by_index(rewards, batch.index, batch.size),
        valid=peers.gather_by_index(batch.valid.double(), batch.index, batch.size) > 0.5,
        group=group,
        groups=int(group.max()) + 1 if batch.size else 0,
    )


def whiten(advantages: Tensor, mask: Tensor, peers: Peers) -> Tensor:
    """(A - mean) / max(std, floor) over all tokens of the step that count, std with n - 1; 0 where mask is False; [B, T].

    0 everywhere where all of them are the same number.
    """
    nothing = torch.zeros_like(advantages)
    kept = torch.where(mask, advantages, nothing)
    total, count = peers.all_reduce_sum(torch.stack([kept.sum(), mask.sum().to(kept.dtype)])).unbind()
    mean = total / count.clamp(min=1.0)
    centred = torch.where(mask, kept - mean, nothing)
    std = (peers.all_reduce_sum(centred.square().sum()) / (count - 1.0).clamp(min=1.0)).sqrt()
    return nothing if bool(std <= ROUNDING * mean.abs()) else centred / std.clamp(min=returns.STD_FLOOR)


def to_credit(advantages: Tensor, batch: Batch, penalty: KLPenalty, returned: Tensor | None = None) -> Credit:
    """Advantages [B] or [B, T] as credit, 0 on tokens that do not count."""
    grid = advantages if advantages.dim() == 2 else advantages.unsqueeze(-1)
    targets = None if returned is None else returned.float()
    return Credit(torch.where(batch.mask, grid.float(), 0.0), returns=targets, kl_coef=penalty.kl_coef)
