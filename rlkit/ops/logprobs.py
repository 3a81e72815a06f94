"""Log-probabilities of chosen tokens. The one shift between logits and tokens of the whole house is here."""

from __future__ import annotations

import torch
from torch import Tensor


def predecessors(prompt_lengths: list[int], lengths: list[int], width: int) -> Tensor:
    """Flat positions in a [B, width] grid whose outputs predict the completion tokens, row by row; [sum of lengths] int64.

    Row i holds a prompt of prompt_lengths[i] tokens, then its completion: the logits that predict token t of the completion stand
    at position prompt_lengths[i] + t - 1.
    """
    spans = [
        torch.arange(i * width + start - 1, i * width + start - 1 + n)
        for i, (start, n) in enumerate(zip(prompt_lengths, lengths, strict=True))
    ]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def of_chosen(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) of the tokens, and the entropy of that distribution in nats.

    logits [n, V] of any float type, tokens [n] int64; returns [n] and [n], float32 (float64 of
    float64 logits), both with gradient.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature  # [n, V]
    logs = torch.log_softmax(scaled, dim=-1)  # [n, V]
    chosen = logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [n]
    entropy = -(logs.exp() * logs).sum(-1)  # [n]
    return chosen, entropy
