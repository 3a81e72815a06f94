"""Policy surrogates: one value a token, never reduced. The gradient of each is a policy gradient at ratio 1.

Each of the table's losses returns the loss and a mask that is True where its clip removes the gradient; all [B, T].
"""

from __future__ import annotations

import torch
from torch import Tensor

CEILING = 40.0  # e^40 is finite in float32 and bfloat16, and far above any bound
SATURATED = 20.0  # e^20: a sigmoid of it is 1 in float64, its slope 0


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(pi / pi_old) where mask is True and 0 elsewhere; all [B, T]."""
    return torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))


def sequence_log_ratio(log_ratios: Tensor, mask: Tensor) -> Tensor:
    """The mean of a sequence's log ratios, at each of its tokens, 0 elsewhere; [B, T].

    exp of it is the geometric mean of the ratios: GSPO, arXiv 2507.18071, equation 7.
    """
    mean = log_ratios.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    return torch.where(mask, mean, torch.zeros_like(log_ratios))


def ppo_clip_loss(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A), and True where the clip removes the gradient; both [B, T].

    PPO, arXiv 1707.06347, equation 7; separate bounds as in DAPO, arXiv 2503.14476, equation 10.
    """
    ratio = log_ratios.clamp(max=CEILING).exp()
    free = ratio * advantages
    bound = ratio.clamp(1.0 - low, 1.0 + high) * advantages
    return -torch.minimum(free, bound), bound < free


def dual_clip_loss(log_ratios: Tensor, advantages: Tensor, low: float, high: float, most: float) -> tuple[Tensor, Tensor]:
    """`ppo_clip_loss`, and where A < 0 at most -most A: max(min(r A, clip(r) A), most A); arXiv 1912.09729, equation 5; [B, T]."""
    loss, cut = ppo_clip_loss(log_ratios, advantages, low, high)
    ceiling = -most * advantages
    held = (advantages < 0) & (loss > ceiling)
    return torch.where(held, ceiling, loss), cut | held


def cispo_loss(log_ratios: Tensor, logprobs: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi: every token keeps a gradient; [B, T].

    MiniMax-M1, arXiv 2506.13585, equation 4. The second value is True where the weight was clipped.
    """
    ratio = log_ratios.detach().clamp(max=CEILING).exp()
    weight = ratio.clamp(1.0 - low, 1.0 + high)
    return -weight * advantages * logprobs, weight != ratio


def sapo_loss(log_ratios: Tensor, advantages: Tensor, positive: float, negative: float) -> tuple[Tensor, Tensor]:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau = positive where A > 0, else negative: a soft gate in place of the clip; [B, T].

    Soft adaptive policy optimization, arXiv 2511.20347, equation 6. Nothing is ever clipped.
    """
    tau = torch.full_like(log_ratios, negative).masked_fill(advantages > 0, positive)
    ratio = log_ratios.clamp(max=SATURATED).exp()
    return -(4.0 / tau) * torch.sigmoid(tau * (ratio - 1.0)) * advantages, torch.zeros_like(advantages, dtype=torch.bool)


def reinforce_loss(log_ratios: Tensor, logprobs: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """-sg(r) A log pi: Williams (1992), "Simple statistical gradient-following algorithms"; [B, T]. Nothing is ever clipped.

    r corrects for samples of pi_old, and is 1 where pi is pi_old: "Off-policy actor-critic", arXiv 1205.4839.
    """
    ratio = log_ratios.detach().clamp(max=CEILING).exp()
    return -ratio * advantages * logprobs, torch.zeros_like(advantages, dtype=torch.bool)


def dppo_loss(logprobs: Tensor, sampled: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-A log pi, and 0 where pi has left mu in the direction of A: pi - mu > high with A > 0, pi - mu < -low with A < 0; [B, T].

    DPPO with binary total variation, abs(pi - mu) of the sampled token: arXiv 2602.04879. `sampled` is log mu, of the policy that sampled;
    the paper's weight pi / mu is `importance_weights`. The second value is True where the loss is set to 0.
    """
    moved = logprobs.detach().exp() - sampled.exp()
    cut = ((advantages > 0) & (moved > high)) | ((advantages < 0) & (moved < -low))
    return torch.where(cut, torch.zeros_like(logprobs), -advantages * logprobs), cut


def importance_weights(log_ratios: Tensor, cap: float, drop: bool, floor: float = 0.0) -> Tensor:
    """Weights for samples of another policy than the trainer's: exp(log ratio), held at `cap` or, with `drop`, 0 outside [floor, cap].

    log_ratios [B, T] of trainer to sampler, a token's own or its sequence's mean; no gradient. Truncated: Munos et al., arXiv 1606.02647.
    Dropped on both sides: IcePop, arXiv 2510.18855; by the sequence's mean: Liu and Li (2025), "When speed kills stability", part 3.
    """
    ratio = log_ratios.detach().clamp(max=CEILING).exp()
    return torch.where((ratio > cap) | (ratio < floor), torch.zeros_like(ratio), ratio) if drop else ratio.clamp(max=cap)
