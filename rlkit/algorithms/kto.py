"""Kahneman-Tversky optimization (Ethayarajh et al., arXiv 2402.01306): completions with a label, not in pairs.

    x_i  = sum_t log pi(y_it) - log pi_ref(y_it)
    z    = max(0, mean_j log pi(y_j' | x_j) - log pi_ref(y_j' | x_j))      y_j' a completion of another prompt of the minibatch
    L_i  = desirable_weight (1 - sigmoid(beta (x_i - z)))                  where desirable
    L_i  = undesirable_weight (1 - sigmoid(beta (z - x_i)))                elsewhere
    loss = mean over completions

Conventions: z comes from a pass without gradient over the whole minibatch, on all ranks; y_j' is the completion of the row half a minibatch
further on, in the order of the data's rows, or of the next after it that has another prompt. The paper wants desirable_weight x desirable
rows : undesirable_weight x undesirable rows between 1:1 and 4:3. A completion counts as right where its x is above z if it is
desirable, below z if not.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from rlkit.algorithms.offline import Kind, OfflineObjective, Unit, compute_log_ratios, compute_reward_metrics, sum_logprobs
from rlkit.fields import describe_field
from rlkit.metrics import Mean, Metrics
from rlkit.ops import preference
from rlkit.types import OfflineMicroBatch


class KTO(OfflineObjective):
    """Config and functions of KTO; the defaults are in recipes/algorithm/kto.yaml."""

    reads: ClassVar[Kind] = "rated"
    unit: ClassVar[Unit] = "sequence"
    baseline: ClassVar[bool] = True

    name: Literal["kto"]
    beta: float = describe_field("larger holds nearer to the reference", gt=0.0, allow_inf_nan=False)
    desirable_weight: float = describe_field(
        "weight of desirable rows; this times their number should be 1 to 4/3 of the other product", ge=0.0, allow_inf_nan=False
    )
    undesirable_weight: float = describe_field("weight of the other rows", ge=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_keys(self) -> KTO:
        if self.desirable_weight == self.undesirable_weight == 0.0:
            raise ValueError("algorithm.desirable_weight and algorithm.undesirable_weight are both 0: nothing would be learned")
        return self

    @property
    def reference(self) -> bool:
        return True

    def compute_losses(self, rows: OfflineMicroBatch) -> tuple[Tensor, Metrics]:
        """One value a completion, [B]."""
        assert rows.desirable is not None and rows.baseline is not None, "the trainer brings what the algorithm asks for"
        x, good = compute_log_ratios(rows), rows.desirable  # [B]
        losses = preference.kto_loss(x, good, rows.baseline, self.beta, self.desirable_weight, self.undesirable_weight)
        margins = torch.where(good, x - rows.baseline, rows.baseline - x)
        return losses, {**compute_reward_metrics(self.beta * x, sum_logprobs(rows), good, margins), "kl": Mean(rows.baseline, 1.0)}
