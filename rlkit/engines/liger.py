"""Liger's fused head, where it is installed and the GPU is a Hopper: log-probs and entropies without logits in memory.

The only file that imports liger_kernel. Its kernel rounds where ops/logprobs.py does not: the gradient of the weight is a sum of bfloat16
parts of 1,024 tokens each, entropies are bfloat16. On other devices it has no kernel, only such sums, so ours is used.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def supports(hidden: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes such hidden states [n, H] and the bias of their head."""
    wanted = bias is None and hidden.is_cuda and hidden.dtype == torch.bfloat16 and len(hidden) > 0
    return wanted and torch.cuda.get_device_capability(hidden.device) == (9, 0) and is_installed()


@cache
def is_installed() -> bool:
    """Liger 0.8.5 or later, with what compiles its kernels for Hopper: the extra liger."""
    found = all(find_spec(name) for name in ("liger_kernel", "cutlass"))
    return found and find_spec("liger_kernel.ops.fused_linear_scaled_cross_entropy") is not None


def liger_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`rlkit.ops.logprobs.logprobs_from_hidden` without a bias: of tokens [n], by hidden [n, H] and weight [V, H]; two of [n], float32."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    surprise, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, tokens, float(temperature), return_entropy=True)
    return -surprise, entropy.float()
