"""Group relative policy optimization (Shao et al., arXiv 2402.03300).

    A_i   = (r_i - mean(r)) / max(std(r), 1e-6)                      over the G samples of one prompt, std with n - 1
    L_it  = -min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) + kl_coef k3_it,   rho_it = pi(o_it) / pi_old(o_it)
    loss  = mean over sequences of the mean over their tokens        (`reduction` names the alternatives)

Conventions: a sample whose reward failed leaves its group's mean and gets advantage 0, its tokens stay in every denominator; a group of
equal rewards gets advantage 0; with a single update a step pi_old is pi, so no pass is spent on it. `scale: none` with `reduction:
fixed_length` is Dr. GRPO (arXiv 2503.20783).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rlkit.algorithms.base import Needs, Peers, State
from rlkit.metrics import Metrics, masked, over
from rlkit.ops import kl, returns, surrogate
from rlkit.ops.masking import Reduction
from rlkit.types import Batch, Credit, Rows, Signals


class GRPO(BaseModel):
    """Config and functions of GRPO; the defaults stand in recipes/algorithm/grpo.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["grpo"]
    clip_low: float = Field(gt=0.0, lt=1.0)
    clip_high: float = Field(gt=0.0)
    kl_coef: float = Field(ge=0.0)
    entropy_coef: float = Field(ge=0.0)
    scale: Literal["group_std", "none"]
    reduction: Reduction

    @property
    def min_samples_per_prompt(self) -> int:
        return 2  # a group of one has no baseline but itself

    @property
    def inert_without_advantage(self) -> bool:
        return self.kl_coef == 0.0 and self.entropy_coef == 0.0

    def needs(self, updates_per_step: int) -> Needs:
        return Needs(old_logprobs=updates_per_step > 1, reference=self.kl_coef > 0.0)

    def assign(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T] from the rewards of all groups, however the groups are split over ranks."""
        rewards = peers.everywhere(batch.rewards, batch.index, batch.size)  # [N] float64
        valid = peers.everywhere(batch.valid.double(), batch.index, batch.size) > 0.5  # [N]
        group = peers.everywhere(batch.group.double(), batch.index, batch.size).long()  # [N]
        groups = int(group.max()) + 1 if batch.size else 0
        estimate = returns.group_normalised if self.scale == "group_std" else returns.group_centred
        advantages = estimate(rewards, valid, group, groups)[batch.index]  # [B]
        alike = returns.group_spread_is_zero(rewards, valid, group, groups)  # [groups]
        metrics: Metrics = {"frac_reward_zero_std": over(alike.double().tolist())}
        return Credit(advantages=advantages.float().unsqueeze(-1) * batch.mask), state, metrics

    def policy_loss(self, rows: Rows) -> tuple[Tensor, Metrics]:
        """The clipped surrogate with what is added to it; [B, T]."""
        log_ratios = surrogate.log_ratio(rows.logprobs, rows.old_logprobs, rows.mask)
        loss, cut = surrogate.clipped(log_ratios, rows.advantages, self.clip_low, self.clip_high)
        metrics: Metrics = {
            "clip_ratio/low_mean": masked((cut & (log_ratios < 0)).float(), rows.mask),
            "clip_ratio/high_mean": masked((cut & (log_ratios > 0)).float(), rows.mask),
        }
        if self.kl_coef > 0.0:
            assert rows.ref_logprobs is not None, "the trainer computes what `needs` asks for"
            divergence = kl.k3(torch.where(rows.mask, rows.logprobs, rows.ref_logprobs), rows.ref_logprobs)
            loss = loss + self.kl_coef * divergence
            metrics["kl"] = masked(divergence, rows.mask)
        if self.entropy_coef > 0.0:
            loss = loss - self.entropy_coef * rows.entropy
        return loss, metrics
