"""Log-probs and entropies of some samples, kept for samples.jsonl as the update computes them anyway: never a forward pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlkit.types import Key, Sample


@dataclass
class TokenRecorder:
    """Keeps what the policy returned first in a step, which is before its weights changed.

    An algorithm that needs old log-probs computes them of every sample; others learn from the policy as it is, in one update, and compute
    the samples with a signal. `found`: on the device, [2, L] float32, log-probs and entropies of the L tokens of a completion.
    """

    keys: frozenset[Key] = frozenset()
    found: dict[Key, Tensor] = field(default_factory=dict)

    def start(self, keys: frozenset[Key]) -> None:
        """A step begins, of which these samples are recorded."""
        self.keys, self.found = keys, {}

    def keep(self, samples: Sequence[Sample], logprobs: Tensor, entropies: Tensor) -> None:
        """logprobs, entropies [B, T] of the samples."""
        for i, sample in enumerate(samples):
            if sample.key in self.keys and sample.key not in self.found:
                size = len(sample.tokens)
                self.found[sample.key] = torch.stack([logprobs[i, :size].detach(), entropies[i, :size].detach()]).float()
