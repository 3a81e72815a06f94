"""Policy surrogates: one value a token, never reduced. The gradient of each is a policy gradient at ratio 1."""

from __future__ import annotations

import torch
from torch import Tensor

CEILING = 40.0  # e^40 is a number in float32 and bfloat16, and far beyond any bound


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(pi / pi_old) where mask is True and 0 elsewhere; all [B, T]."""
    return torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))


def clipped(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A), and where the clip took the gradient away; both [B, T].

    PPO, arXiv 1707.06347, equation 7; bounds apart from each other as in DAPO, arXiv 2503.14476, equation 10.
    """
    ratio = log_ratios.clamp(max=CEILING).exp()
    free = ratio * advantages
    bound = ratio.clamp(1.0 - low, 1.0 + high) * advantages
    return -torch.minimum(free, bound), bound < free
