"""Masks, and the weights that reduce unreduced losses to one number.

Law: a loss is summed with the weights of its unit, and the weights are normalised once, by totals over the whole minibatch on all
ranks. Then no split into ranks, micro-batches or packs changes a gradient. B samples, T tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean", "fixed_length"]


def pad_rows(rows: list[Tensor], length: int, value: float | bool | int) -> Tensor:
    """Stacks ragged [L_i] rows into [B, length], filled with `value` on the right."""
    first = rows[0] if rows else torch.zeros(0)
    grid = first.new_full((len(rows), length), value)  # [B, length]
    for i, row in enumerate(rows):
        grid[i, : row.shape[0]] = row
    return grid


def count_units(mask: Tensor) -> Tensor:
    """The number of tokens that count and of sequences; [2] float64. Its sum over ranks is the `totals` of `token_weights`.

    A sequence without tokens that count is counted: masked samples stay in the denominator.
    """
    return torch.stack([mask.sum().double(), torch.tensor(float(mask.shape[0]), dtype=torch.float64, device=mask.device)])


def token_weights(mask: Tensor, reduction: Reduction, totals: Tensor, fixed_length: int) -> Tensor:
    """Weights [B, T] float64 for a loss a token.

    token_mean: 1 / all tokens (DAPO, arXiv 2503.14476); sequence_mean: 1 / (length x sequences) (GRPO, arXiv 2402.03300);
    fixed_length: 1 / (fixed_length x sequences) (Dr. GRPO, arXiv 2503.20783). `totals` as from `count_units`, over all ranks.
    """
    counts = mask.double()  # [B, T]
    weights: Tensor
    tokens, sequences = totals.double().clamp(min=1.0)
    if reduction == "token_mean":
        weights = counts / tokens
    elif reduction == "sequence_mean":
        weights = counts / (counts.sum(-1, keepdim=True).clamp(min=1.0) * sequences)
    else:
        weights = counts / (fixed_length * sequences)
    return weights


def uniform_weights(losses: Tensor, total: int) -> Tensor:
    """1 / total for every value; float64. total: the units of the whole minibatch on all ranks."""
    return torch.full_like(losses, 1.0 / max(total, 1), dtype=torch.float64)


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum of losses x weights, ignoring losses where the weight is 0, also nan."""
    kept = torch.where(weights != 0, losses, torch.zeros_like(losses))
    return (kept * weights.to(kept.dtype)).sum()
