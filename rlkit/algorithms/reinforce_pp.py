"""REINFORCE++ and REINFORCE++-baseline (Hu et al., arXiv 2501.03262).

    reinforce_pp           R_it = r_i - kl_coef sum_{s >= t} k1_is
    reinforce_pp_baseline  R_it = r_i - mean(r)                      over the samples of one prompt
    A_it = (R_it - mean(R)) / max(std(R), 1e-6)                      over all tokens of the step, on all ranks, std with n - 1
    L_it = -min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)

Conventions: discount 1; the baseline variant has its KL as k2 in the loss. A failed reward leaves every mean and gets advantage 0; where
all R are the same, all advantages are 0. The baseline variant needs at least two samples a prompt, the other needs one.
"""

from __future__ import annotations

from typing import ClassVar

from rlkit.algorithms.base import Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, gather_step_rewards, to_credit, whiten
from rlkit.algorithms.objective import GroupObjective, Objective
from rlkit.metrics import Metrics
from rlkit.ops import returns
from rlkit.types import Batch, Credit, Signals


class ReinforcePP(Objective):
    """Config and functions of REINFORCE++; the defaults are in recipes/algorithm/reinforce_pp.yaml."""

    credit_by_token: ClassVar[bool] = True

    @property
    def inert_without_advantage(self) -> bool:
        return False  # the mean of the batch gives every sample a share

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T], of tokens."""
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        rewards = returns.reward_on_last_token(batch.rewards, batch.mask) - penalty.tokens  # [B, T]
        mask = batch.mask & batch.valid.unsqueeze(-1)
        return to_credit(whiten(returns.reward_to_go(rewards, mask), mask, peers), batch, penalty), penalty.state, penalty.metrics


class ReinforcePPBaseline(GroupObjective):
    """Config and functions of REINFORCE++-baseline; the defaults are in recipes/algorithm/reinforce_pp_baseline.yaml."""

    @property
    def inert_without_advantage(self) -> bool:
        return False  # the mean of the batch gives every sample a share

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T], one number a sample."""
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        step = gather_step_rewards(batch, batch.rewards - penalty.samples, peers)
        centred = returns.centre_by_group(step.rewards, step.valid, step.group, step.groups)[batch.index]  # [B]
        mask = batch.mask & batch.valid.unsqueeze(-1)
        advantages = whiten(centred.unsqueeze(-1).expand(mask.shape), mask, peers)
        return to_credit(advantages, batch, penalty), penalty.state, penalty.metrics | step.metrics
