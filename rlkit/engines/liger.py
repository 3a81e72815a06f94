"""Liger's fused head, where it is installed and the GPU is a Hopper: log-probs and entropies without logits in memory. The only file that
imports liger_kernel.

Its kernel rounds where ours (ops/logprobs.py) does not: the weight's gradient is a sum of bfloat16 parts of 1,024 tokens each, entropies
are bfloat16. On other devices it has no kernel, only such sums, so that ours stays.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def serves(hidden: Tensor, bias: Tensor | None) -> bool:
    """Whether its kernel takes such hidden states [n, H] and the bias of their head."""
    wanted = bias is None and hidden.is_cuda and hidden.dtype == torch.bfloat16 and len(hidden) > 0
    return wanted and torch.cuda.get_device_capability(hidden.device) == (9, 0) and installed()


@cache
def installed() -> bool:
    """Since 0.8.5, with what compiles its kernels for Hopper: the extra liger."""
    there = all(find_spec(name) for name in ("liger_kernel", "cutlass"))
    return there and find_spec("liger_kernel.ops.fused_linear_scaled_cross_entropy") is not None


def of_hidden(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`rlkit.ops.logprobs.logprobs_from_hidden` without a bias: of tokens [n], by hidden [n, H] and weight [V, H]; two of [n], float32."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    surprise, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, tokens, float(temperature), return_entropy=True)
    return -surprise, entropy.float()
