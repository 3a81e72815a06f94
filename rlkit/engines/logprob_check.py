"""Compares the log-probs of the rollout engine and of the trainer for the same tokens, in each step: do both compute the same policy?"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from rlkit.errors import RunFailed
from rlkit.metrics import Mean, Metrics, Sum, max_over_mask, mean_over_mask

MEAN = "sampling/sampling_logp_difference/mean"
MAX = "sampling/sampling_logp_difference/max"
COMPARED = "sampling/compared_tokens"  # tokens that were compared: 0 in a step of samples of older weights alone


class LogprobCheck:
    """Compares sampler and trainer before an optimizer step; that they hold the same weights is seen after each sync.

    limit: of the mean absolute difference, nats; None: no limit. usual: what rounding mostly stays below; above it `warn` is called once.
    Rounding in bfloat16 grows with depth: of SmolLM2-135M's own samples transformers alone is 0.029 off its float32, and two engines are
    0.041 apart.
    """

    def __init__(self, limit: float | None, usual: float = math.inf, warn: Callable[[str], None] = print) -> None:
        self.limit, self.usual, self.warn = limit, usual, warn

    def compare(self, trained: Tensor, sampled: Tensor, mask: Tensor) -> Metrics:
        """Log-probs [B, T] of the trainer's first pass and of the sampler, over the tokens of mask [B, T]."""
        difference = (trained.detach() - sampled).abs()
        mean = mean_over_mask(difference, mask)
        return {MEAN: mean, MAX: max_over_mask(difference, mask), COMPARED: Sum(mean.weight)}

    def check(self, metrics: Metrics) -> None:
        """Raises RunFailed where sampler and trainer are not the same policy."""
        mean = metrics.get(MEAN)
        if self.limit is None or not isinstance(mean, Mean) or not mean.weight:
            return
        apart = f"its log-probs differ by {mean.value:.2g} in the mean"
        if not mean.value <= self.limit:
            raise RunFailed(
                f"the rollout engine does not sample from the policy: {apart}, and at most {self.limit:.2g} is taken for rounding "
                f"(engine.mismatch_limit). The weights that it holds were compared after the sync: the two compute differently, so compare "
                "dtype, attention and sampling"
            )
        if mean.value > self.usual:
            self.warn(
                f"the rollout engine holds the policy's weights, and {apart} from the trainer's, more than the usual {self.usual:.2g}: "
                f"rounding in bfloat16, mostly of the logits, which {MEAN} of each step shows; model.dtype=float32 has none"
            )
            self.usual = math.inf
