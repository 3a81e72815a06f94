"""Compares the log-probs of the rollout engine and of the trainer for the same tokens, in each step: do both hold the same weights?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from rlkit.engines.base import RolloutEngine, checksum
from rlkit.errors import RunFailed
from rlkit.metrics import Max, Mean, Metrics, Sum, mean_over_mask

MEAN = "sampling/sampling_logp_difference/mean"
MAX = "sampling/sampling_logp_difference/max"
COMPARED = "sampling/compared_tokens"  # tokens that were compared: 0 in a step of samples of older weights alone


class LogprobCheck:
    """Compares sampler and trainer before an optimizer step. limit: of the mean absolute difference, nats; None: no limit."""

    def __init__(self, engine: RolloutEngine, weights: Callable[[], Iterator[tuple[str, Tensor]]], limit: float | None) -> None:
        self.engine, self.weights, self.limit = engine, weights, limit

    def compare(self, trained: Tensor, sampled: Tensor, mask: Tensor) -> Metrics:
        """Log-probs [B, T] of the trainer's first pass and of the sampler, over the tokens of mask [B, T]."""
        difference = (trained.detach() - sampled).abs()
        counted = difference[mask]
        return {
            MEAN: mean_over_mask(difference, mask),
            MAX: Max(float(counted.max()) if counted.numel() else 0.0),
            COMPARED: Sum(float(counted.numel())),
        }

    def check(self, metrics: Metrics) -> None:
        """Raises RunFailed, with the names of tensors that differ, where sampler and trainer are not the same policy."""
        mean = metrics.get(MEAN)
        if self.limit is None or not isinstance(mean, Mean) or not mean.weight:
            return
        if mean.value > self.limit or math.isnan(mean.value):
            raise RunFailed(
                f"the rollout engine does not sample from the policy: its log-probs differ by {mean.value:.2g} in the mean, and at most "
                f"{self.limit:.2g} is taken for rounding (engine.mismatch_limit); {self.find_differing_tensors()}"
            )

    def find_differing_tensors(self) -> str:
        """The tensors whose last sent value is not the policy's, as a phrase."""
        received = self.engine.checksums()
        differing = [n for n, tensor in self.weights() if n not in received or bool(received[n] != checksum(tensor))]
        if not differing:
            return (
                "every tensor arrived as the policy has it, so the two compute differently: compare dtype, attention and sampling settings"
            )
        return f"tensors that differ from the policy's: {', '.join(differing[:8])}{' ...' if len(differing) > 8 else ''}"
