"""From rewards to advantages, one equation a function. Rewards are of the whole step, N samples of all ranks, in global order."""

from __future__ import annotations

import torch
from torch import Tensor

STD_FLOOR = 1e-6  # groups of equal rewards have no spread to divide by


def group_sums(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums [groups] of values [N] by group number [N]."""
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, group, values)


def group_centred(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """reward - mean of its group's valid rewards, 0 where not valid; all [N]. A group with one valid sample has no baseline: 0."""
    counts = group_sums(valid.to(rewards.dtype), group, groups)  # [groups]
    kept = torch.where(valid, rewards, torch.zeros_like(rewards))
    means = group_sums(kept, group, groups) / counts.clamp(min=1.0)
    usable = valid & (counts[group] >= 2)
    centred = torch.where(usable, rewards - means[group], torch.zeros_like(rewards))
    alike = group_spread_is_zero(rewards, valid, group, groups)
    return torch.where(alike[group], torch.zeros_like(centred), centred)


def group_std(centred: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """Standard deviation (n-1) of each group's valid rewards from their centred values; [groups]."""
    counts = group_sums(valid.to(centred.dtype), group, groups)
    return (group_sums(centred.square(), group, groups) / (counts - 1.0).clamp(min=1.0)).sqrt()


def group_normalised(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """(reward - group mean) / max(group std, floor): GRPO, arXiv 2402.03300, section 4.1.2; [N]."""
    centred = group_centred(rewards, valid, group, groups)
    return centred / group_std(centred, valid, group, groups)[group].clamp(min=STD_FLOOR)


def group_spread_is_zero(rewards: Tensor, valid: Tensor, group: Tensor, groups: int) -> Tensor:
    """Whether all valid rewards of a group are the very same number; [groups] bool. Rounding in a mean must not make a signal."""
    low = rewards.new_full((groups,), torch.inf).scatter_reduce(0, group, rewards.masked_fill(~valid, torch.inf), "amin")
    high = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, group, rewards.masked_fill(~valid, -torch.inf), "amax")
    return high <= low
