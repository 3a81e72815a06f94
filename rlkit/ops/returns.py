"""From rewards to advantages, one equation a function. Rewards are those of the whole step: N samples of all ranks, in global order."""

from __future__ import annotations

import torch
from torch import Tensor

STD_FLOOR = 1e-6  # groups of equal rewards have a std of 0
MEAN_FLOOR = 1e-6  # groups without a reward have a mean of 0


def sum_by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums [groups] of values [N] by group number [N]."""
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, group, values)


def group_mean(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of each group's valid rewards, 0 where there are none; [groups]."""
    counts = sum_by_group(valid.to(rewards.dtype), group, groups)  # [groups]
    kept = torch.where(valid, rewards, torch.zeros_like(rewards))
    return sum_by_group(kept, group, groups) / counts.clamp(min=1.0)


def centre_by_group(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """reward - mean of its group's valid rewards, 0 where not valid; all [N]. Equal rewards, and one alone, give 0 despite rounding."""
    centred = torch.where(valid, rewards - group_mean(rewards, valid, group, groups)[group], torch.zeros_like(rewards))
    alike = group_spread_is_zero(rewards, valid, group, groups)
    return torch.where(alike[group], torch.zeros_like(centred), centred)


def group_std(centred: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """Standard deviation (n-1) of each group's valid rewards from their centred values; [groups]."""
    counts = sum_by_group(valid.to(centred.dtype), group, groups)
    return (sum_by_group(centred.square(), group, groups) / (counts - 1.0).clamp(min=1.0)).sqrt()


def normalise_by_group(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """(reward - group mean) / max(group std, floor): GRPO, arXiv 2402.03300, section 4.1.2; [N]."""
    centred = centre_by_group(rewards, valid, group, groups)
    return centred / group_std(centred, valid, group, groups)[group].clamp(min=STD_FLOOR)


def divide_by_group_mean(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """(reward - group mean) / group mean, 0 where no reward is above 0: MaxRL, arXiv 2602.02710, algorithm 1; [N]. No reward is below 0."""
    means = group_mean(rewards, valid, group, groups).clamp(min=MEAN_FLOOR)
    return centre_by_group(rewards, valid, group, groups) / means[group]


def group_spread_is_zero(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """Whether all valid rewards of a group are the very same number; [groups] bool. Rounding of a mean must not become a signal."""
    low = rewards.new_full((groups,), torch.inf).scatter_reduce(0, group, rewards.masked_fill(~valid, torch.inf), "amin")
    high = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, group, rewards.masked_fill(~valid, -torch.inf), "amax")
    return high <= low


def leave_one_out(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """reward - mean of the other valid rewards of its group: RLOO, arXiv 2402.14740, section 2; 0 where not valid or alone; [N].

    That is n / (n - 1) (reward - mean of all n).
    """
    counts = sum_by_group(valid.to(rewards.dtype), group, groups)[group]  # [N]
    return centre_by_group(rewards, valid, group, groups) * counts / (counts - 1.0).clamp(min=1.0)


def reward_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """Sum of the rewards of this token and of those after it, over tokens that count, 0 elsewhere; [B, T]."""
    kept = torch.where(mask, rewards, torch.zeros_like(rewards))
    return torch.where(mask, kept.flip(-1).cumsum(-1).flip(-1), torch.zeros_like(kept))


def reward_on_last_token(rewards: Tensor, mask: Tensor) -> Tensor:
    """A reward a sample [B] on its last token that counts, 0 elsewhere; [B, T]. A sample without such a token has none."""
    later = mask.long().flip(-1).cumsum(-1).flip(-1)  # tokens that count, from this one on
    return torch.where(mask & (later == 1), rewards.unsqueeze(-1), torch.zeros_like(rewards).unsqueeze(-1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages, 0 where mask is False; all [B, T]. Schulman et al., arXiv 1506.02438, equation 16.

    A_t = delta_t + gamma lam A_t+1, delta_t = r_t + gamma V_t+1 - V_t, where t + 1 is the next token that counts: tokens between, which
    the policy did not write, are skipped. After the last one nothing follows: A and V are 0.
    """
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0]) if values.shape[1] else values.sum(-1)  # A of the next token that counts, [B]
    value = torch.zeros_like(following)  # V of it, [B]
    for t in reversed(range(values.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * value - values[:, t]
        following = torch.where(counts, delta + gamma * lam * following, following)
        value = torch.where(counts, values[:, t], value)
        advantages[:, t] = torch.where(counts, following, advantages[:, t])
    return advantages
