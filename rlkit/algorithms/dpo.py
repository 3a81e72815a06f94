"""Direct preference optimization (Rafailov et al., arXiv 2305.18290) and related losses, of N pairs.

    x_i  = sum_t log pi(y_it) - log pi_ref(y_it)                     with a reference: sums over tokens
    x_i  = mean_t log pi(y_it)                                       simpo and orpo: without one, means over tokens
    h    = x_chosen - x_rejected

    sigmoid    -log sigmoid(beta h)                                                      DPO, 2305.18290
    smoothed   -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)                     cDPO, Mitchell (2023); e = label_smoothing
    hinge      max(0, 1 - beta h)                                                        SLiC, 2305.10425
    ipo        (h - 1 / (2 beta))^2                                                      IPO, 2310.12036
    robust     (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e)       2403.00409
    simpo      -log sigmoid(beta h - gamma)                                              SimPO, 2405.14734
    orpo       -x_chosen - beta log sigmoid(log odds_chosen - log odds_rejected)         ORPO, 2403.07691; odds = e^x / (1 - e^x)
    loss = mean over pairs

Conventions: the reference is the starting model; IPO by the sum of log-probs. Where policy and reference agree, sigmoid, smoothed and
robust are ln 2. The implicit reward in the metrics is beta x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor

from rlkit.algorithms.offline import (
    Kind,
    OfflineObjective,
    Unit,
    average_logprobs,
    compute_log_ratios,
    compute_pair_metrics,
    split_pairs,
    sum_logprobs,
)
from rlkit.fields import describe_field
from rlkit.metrics import Metrics
from rlkit.ops import preference
from rlkit.types import OfflineMicroBatch

REFERENCE_FREE = ("simpo", "orpo")
NOISY = ("smoothed", "robust")  # losses with label_smoothing


class DPO(OfflineObjective):
    """Config and functions of DPO; the defaults are in recipes/algorithm/dpo.yaml."""

    reads: ClassVar[Kind] = "pairs"
    unit: ClassVar[Unit] = "pair"

    name: Literal["dpo"]
    loss: Literal["sigmoid", "smoothed", "hinge", "ipo", "robust", "simpo", "orpo"] = describe_field("simpo and orpo need no reference")
    beta: float = describe_field(
        "how much a margin counts: larger holds nearer to the reference (simpo: 2 to 2.5; orpo: weight of the odds)",
        gt=0.0,
        allow_inf_nan=False,
    )
    label_smoothing: float = describe_field("smoothed and robust: the share of labels that are wrong", ge=0.0, le=1.0)
    simpo_gamma: float = describe_field("simpo: the target of the margin", ge=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def check_keys(self) -> DPO:
        """Checks across config. Raises ValueError."""
        if self.label_smoothing >= 0.5:
            raise ValueError(
                f"algorithm.label_smoothing={self.label_smoothing} means that labels are wrong at least as often as right, and nothing can "
                "be learned from them; set it below 0.5, or swap chosen and rejected"
            )
        if self.label_smoothing > 0.0 and self.loss not in NOISY:
            raise ValueError(
                f"algorithm.label_smoothing has no effect with algorithm.loss={self.loss}; set loss=smoothed, robust, or label_smoothing=0"
            )
        if self.simpo_gamma > 0.0 and self.loss != "simpo":
            raise ValueError(f"algorithm.simpo_gamma has no effect with algorithm.loss={self.loss}; set loss=simpo, or simpo_gamma=0")
        return self

    @property
    def reference(self) -> bool:
        return self.loss not in REFERENCE_FREE

    def compute_losses(self, rows: OfflineMicroBatch) -> tuple[Tensor, Metrics]:
        """One value a pair, [N]."""
        x = compute_log_ratios(rows) if self.reference else average_logprobs(rows)  # [2 N]
        return LOSSES[self.loss](self, *split_pairs(x)), compute_pair_metrics(self.beta * x, sum_logprobs(rows))


LOSSES: dict[str, Callable[[DPO, Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda config, chosen, rejected: preference.dpo_loss(chosen - rejected, config.beta),
    "smoothed": lambda config, chosen, rejected: preference.conservative_dpo_loss(chosen - rejected, config.beta, config.label_smoothing),
    "hinge": lambda config, chosen, rejected: preference.hinge_loss(chosen - rejected, config.beta),
    "ipo": lambda config, chosen, rejected: preference.ipo_loss(chosen - rejected, config.beta),
    "robust": lambda config, chosen, rejected: preference.robust_dpo_loss(chosen - rejected, config.beta, config.label_smoothing),
    "simpo": lambda config, chosen, rejected: preference.simpo_loss(chosen, rejected, config.beta, config.simpo_gamma),
    "orpo": lambda config, chosen, rejected: preference.orpo_loss(chosen, rejected, config.beta),
}
