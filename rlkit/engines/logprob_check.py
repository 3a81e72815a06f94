"""Compares the log-probs of the rollout engine and of the trainer for the same tokens, in each step: do both hold the same weights?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from rlkit.engines.base import RolloutEngine, checksum
from rlkit.errors import RunFailed
from rlkit.metrics import Mean, Metrics, Sum, max_over_mask, mean_over_mask

MEAN = "sampling/sampling_logp_difference/mean"
MAX = "sampling/sampling_logp_difference/max"
COMPARED = "sampling/compared_tokens"  # tokens that were compared: 0 in a step of samples of older weights alone


class LogprobCheck:
    """Compares sampler and trainer before an optimizer step.

    limit: of the mean absolute difference, nats; None: no limit. suspect: a smaller difference from which the weights themselves are
    compared: where they are the same it is rounding, which `warn` reports once. Rounding in bfloat16 grows with depth: of SmolLM2-135M's
    own samples transformers alone is 0.029 off its float32, and two engines are 0.041 apart.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        limit: float | None,
        suspect: float = math.inf,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.engine, self.weights, self.limit = engine, weights, limit
        self.suspect, self.warn = suspect, warn

    def compare(self, trained: Tensor, sampled: Tensor, mask: Tensor) -> Metrics:
        """Log-probs [B, T] of the trainer's first pass and of the sampler, over the tokens of mask [B, T]."""
        difference = (trained.detach() - sampled).abs()
        mean = mean_over_mask(difference, mask)
        return {MEAN: mean, MAX: max_over_mask(difference, mask), COMPARED: Sum(mean.weight)}

    def check(self, metrics: Metrics) -> None:
        """Raises RunFailed, with the names of tensors that differ, where sampler and trainer are not the same policy."""
        mean = metrics.get(MEAN)
        if self.limit is None or not isinstance(mean, Mean) or not mean.weight:
            return
        beyond = mean.value > self.limit or math.isnan(mean.value)
        differing = self.list_differing_tensors() if beyond or mean.value > self.suspect else []
        apart = f"its log-probs differ by {mean.value:.2g} in the mean"
        if beyond or differing:
            cause = "every tensor arrived as the policy has it, so the two compute differently: compare dtype, attention and sampling"
            if differing:
                cause = f"tensors that differ from the policy's: {', '.join(differing[:8])}{' ...' if len(differing) > 8 else ''}"
            limit = min(self.limit, self.suspect) if differing else self.limit
            raise RunFailed(
                f"the rollout engine does not sample from the policy: {apart}, and at most {limit:.2g} is taken for rounding "
                f"(engine.mismatch_limit); {cause}"
            )
        if mean.value > self.suspect:
            self.warn(
                f"the rollout engine has the policy's weights, and {apart} from the trainer's: rounding, which {MEAN} of each step shows; "
                "model.dtype=float32 has none"
            )
            self.suspect = math.inf

    def list_differing_tensors(self) -> list[str]:
        """Names of the tensors whose last sent value is not the policy's."""
        received = self.engine.checksums()
        return [name for name, tensor in self.weights() if name not in received or bool(received[name] != checksum(tensor))]
