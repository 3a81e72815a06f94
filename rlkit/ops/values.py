"""The critic's loss: one value a token, never reduced."""

from __future__ import annotations

import torch
from torch import Tensor


def value_clip_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2, and True where the clip removes the gradient; all [B, T].

    The value clipping of PPO (arXiv 1707.06347) as in its authors' code: a value moves at most `clip` from its value before the step.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    free, bound = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(free, bound), (bound > free) & (near != values)
