"""Supervised fine-tuning: the likelihood of demonstrations.

L_it = -log pi(y_it)          loss = mean over all tokens of the completions, prompts left out
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlkit.algorithms.offline import Kind, OfflineObjective, Unit, sum_logprobs
from rlkit.metrics import Metrics, mean_over_mask
from rlkit.types import OfflineMicroBatch


class SFT(OfflineObjective):
    """Config and functions of supervised fine-tuning."""

    reads: ClassVar[Kind] = "demonstrations"
    unit: ClassVar[Unit] = "token"
    measure: ClassVar[Literal["accuracy", "loss"]] = "loss"

    name: Literal["sft"]

    def compute_losses(self, rows: OfflineMicroBatch) -> tuple[Tensor, Metrics]:
        """One value a token, [B, T]."""
        logps = sum_logprobs(rows)  # [B]
        return torch.where(rows.mask, -rows.outputs, 0.0), {"logps/chosen": mean_over_mask(logps, torch.ones_like(logps, dtype=torch.bool))}
