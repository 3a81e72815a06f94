"""Proximal policy optimization (Schulman et al., arXiv 1707.06347) with a critic and generalised advantages (arXiv 1506.02438).

    r_it   = -kl_coef k1_it, and on the last token that counts also the reward; the rewards of an episode's turns on the last one of each
    A_it   = sum_l (gamma gae_lambda)^l delta_i,t+l,   delta_it = r_it + gamma V_i,t+1 - V_it      over tokens that count
    L_it   = -min(rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it)                     A whitened over the step
    LV_it  = max((V - R)^2, (V_old + clip(V - V_old, -value_clip, value_clip) - R)^2) / 2          R = A + V_old, A not whitened

Conventions: after the last token nothing follows, cut completions too; advantages are whitened over all tokens of the step that count, on
all ranks, std with n - 1. A failed reward gives its sample advantage 0, and the critic does not learn from it. One sample a prompt is fine.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from rlkit.algorithms.base import Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, to_credit, whiten
from rlkit.algorithms.objective import CriticObjective
from rlkit.fields import describe_field
from rlkit.metrics import Metrics
from rlkit.ops import returns
from rlkit.types import Batch, Credit, Signals


class PPO(CriticObjective):
    """Config and functions of PPO; the defaults are in recipes/algorithm/ppo.yaml."""

    credit_by_token: ClassVar[bool] = True
    gamma: float = describe_field("discount factor per token", gt=0.0, le=1.0)
    gae_lambda: float = describe_field("1: rewards alone, 0: the critic's next value alone", ge=0.0, le=1.0)
    whiten: bool = describe_field("advantages to mean 0 and deviation 1 over the step")

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages and returns [B, T], of tokens."""
        assert signals.values is not None, "the trainer computes what `needs` asks for"
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        turns = (
            torch.zeros_like(penalty.tokens) if batch.turn_rewards is None else torch.where(batch.mask, batch.turn_rewards, 0.0)
        )  # [B, T]
        rewards = returns.reward_on_last_token(batch.rewards - turns.sum(-1), batch.mask) + turns - penalty.tokens  # [B, T]
        before = signals.values.double()
        mask = batch.mask & batch.valid.unsqueeze(-1)
        advantages = returns.gae(rewards, before, mask, self.gamma, self.gae_lambda)
        returned = torch.where(batch.valid.unsqueeze(-1), advantages + before, torch.nan)
        if self.whiten:
            advantages = whiten(advantages, mask, peers)
        return to_credit(advantages, batch, penalty, returned), penalty.state, penalty.metrics
