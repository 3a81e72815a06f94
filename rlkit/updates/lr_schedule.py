"""The learning rate as a pure function of the index of the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then constant, or a linear or cosine decay that reaches peak * floor one update after the last."""

    peak: float
    kind: Literal["constant", "linear", "cosine"]
    warmup: int  # updates
    total: int  # updates of the run
    floor: float = 0.0  # of a decay, as a share of the peak: 0 to 1

    def lr(self, update: int) -> float:
        """Of update `update`, counted from 0."""
        if update < self.warmup:
            return self.peak * (update + 1) / self.warmup
        if self.kind == "constant":
            return self.peak
        left = (self.total - update) / max(self.total - self.warmup, 1)  # 1 at the first update after warm-up
        share = left if self.kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
        return self.peak * (self.floor + (1.0 - self.floor) * share)
