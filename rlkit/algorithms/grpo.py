"""Group relative policy optimization (Shao et al., arXiv 2402.03300).

    A_i   = (r_i - mean(r)) / max(std(r), 1e-6)                      over the G samples of one prompt, std with n - 1
    L_it  = -min(rho_it A_i, clip(rho_it, 1 - clip_low, 1 + clip_high) A_i) + kl_coef k3_it,   rho_it = pi(o_it) / pi_old(o_it)
    loss  = mean over sequences of the mean over their tokens        (`reduction` names the alternatives)

Conventions: a sample whose reward failed leaves its group's mean and gets advantage 0, its tokens stay in every denominator; a group of
equal rewards gets advantage 0; with a single update a step pi_old is pi, so no pass is spent on it; at least two samples a prompt.
`scale: none` with `reduction: fixed_length` is Dr. GRPO (arXiv 2503.20783); `clip_high: 0.28` with `reduction: token_mean` are DAPO's
(arXiv 2503.14476). `scale: batch_std` divides by the std of all rewards of the step instead, on all ranks (arXiv 2508.08221);
`scale: group_mean` by the mean of the group, which is MaxRL (arXiv 2602.02710): of rewards 0 and 1 the expected gradient is that of log p
cut after its first G - 1 terms, p the chance of a 1. With the KL in the reward, r_i has kl_coef times the k1 of its tokens taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from rlkit.algorithms.base import Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, gather_step_rewards, to_credit
from rlkit.algorithms.objective import GroupObjective
from rlkit.errors import UserError
from rlkit.fields import describe_field
from rlkit.metrics import Metrics
from rlkit.ops import returns
from rlkit.types import Batch, Credit, Signals


class GRPO(GroupObjective):
    """Config and functions of GRPO; the defaults are in recipes/algorithm/grpo.yaml."""

    scale: Literal["group_std", "batch_std", "group_mean", "none"] = describe_field(
        "divisor of the centred rewards: the std of their group (group_std) or of the step (batch_std), the mean of their group "
        "(group_mean: MaxRL), or none"
    )

    @model_validator(mode="after")
    def check_scale(self) -> GRPO:
        """Raises ValueError where rewards cannot be divided by their mean."""
        if self.scale == "group_mean" and self.kl_coef > 0.0 and self.kl_in == "reward":
            raise ValueError(
                "algorithm.scale=group_mean divides by the mean reward of a group, which a KL in the reward makes 0 or less; set "
                "algorithm.kl_in=loss with algorithm.kl_estimator=k2 or k3, or another scale"
            )
        return self

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T] from the rewards of all groups, however the groups are split over ranks."""
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        step = gather_step_rewards(batch, batch.rewards - penalty.samples, peers)
        advantages = SCALES[self.scale](step.rewards, step.valid, step.group, step.groups)[batch.index]  # [B]
        return to_credit(advantages, batch, penalty), penalty.state, penalty.metrics | step.metrics


def normalise_by_batch_std(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """(reward - group mean) / max(std of the step's valid rewards, floor): arXiv 2508.08221; [N]."""
    whole = torch.zeros_like(group)  # the step as one group
    std = returns.group_std(returns.centre_by_group(rewards, valid, whole, 1), valid, whole, 1)  # [1]
    return returns.centre_by_group(rewards, valid, group, groups) / std.clamp(min=returns.STD_FLOOR)


def normalise_by_group_mean(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """MaxRL, arXiv 2602.02710; [N]. Raises UserError for a reward below 0."""
    lowest = min(rewards[valid].tolist(), default=0.0)
    if lowest < -returns.MEAN_FLOOR:
        raise UserError(
            f"algorithm.scale=group_mean divides by the mean reward of a group, and a sample has the reward {lowest:.4g}, below 0; make "
            "the sum of the rewards 0 or more (weights, penalties, rewarding.normalise=none), or set algorithm.scale=none or group_std"
        )
    return returns.divide_by_group_mean(rewards, valid, group, groups)


SCALES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "group_std": returns.normalise_by_group,
    "batch_std": normalise_by_batch_std,
    "group_mean": normalise_by_group_mean,
    "none": returns.centre_by_group,
}
