"""The interface of an offline algorithm: its data, its needs, one unreduced loss. B completions, T tokens, N pairs.

It learns from completions in the data; nothing is sampled and no reward is computed. It knows no engine, no rank, no file.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from rlkit.fields import describe_field
from rlkit.metrics import Mean, Metrics, mean_over_mask
from rlkit.types import OfflineMicroBatch

Kind = Literal["pairs", "rated", "demonstrations"]
Unit = Literal["pair", "sequence", "token"]
COMPLETIONS_PER_ROW: dict[Kind, int] = {"pairs": 2, "rated": 1, "demonstrations": 1}  # of a row


class OfflineObjective(BaseModel):
    """Keys and constants that all offline configs share; defaults are in recipes/algorithm/."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reads: ClassVar[Kind]
    unit: ClassVar[Unit]  # what the loss gives a value for, and what the mean is over
    learner: ClassVar[Literal["policy", "reward_model"]] = "policy"
    measure: ClassVar[Literal["accuracy", "loss"]] = "accuracy"  # of held-out rows
    baseline: ClassVar[bool] = False  # whether the loss needs OfflineMicroBatch.baseline

    name: str = describe_field("which algorithm: algorithm=NAME")

    @property
    def reference(self) -> bool:
        """Whether the loss needs OfflineMicroBatch.reference."""
        return False


class OfflineAlgorithm(Protocol):
    """A frozen, typed config with pure functions."""

    reads: ClassVar[Kind]
    unit: ClassVar[Unit]
    learner: ClassVar[Literal["policy", "reward_model"]]
    measure: ClassVar[Literal["accuracy", "loss"]]
    baseline: ClassVar[bool]

    @property
    def name(self) -> str: ...

    @property
    def reference(self) -> bool: ...

    def compute_losses(self, rows: OfflineMicroBatch) -> tuple[Tensor, Metrics]:
        """One value a unit, [N], [B] or [B, T], and metrics to watch."""
        ...


def sum_logprobs(rows: OfflineMicroBatch) -> Tensor:
    """log pi of whole completions; [B] float64."""
    return torch.where(rows.mask, rows.outputs, 0.0).double().sum(-1)


def average_logprobs(rows: OfflineMicroBatch) -> Tensor:
    """The mean of log pi over a completion's tokens; [B] float64."""
    return sum_logprobs(rows) / rows.mask.sum(-1).clamp(min=1)


def compute_log_ratios(rows: OfflineMicroBatch) -> Tensor:
    """log(pi / pi_ref) of whole completions; [B] float64."""
    assert rows.reference is not None, "the trainer brings what the algorithm asks for"
    return sum_logprobs(rows) - rows.reference


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """[2 N] in the order of pairs -> the chosen [N] and the rejected [N]."""
    chosen, rejected = values.view(-1, 2).unbind(-1)
    return chosen, rejected


def compute_accuracy(margins: Tensor) -> Mean:
    """The share of margins [N] above 0; a margin of 0 counts as half right."""
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    return mean_over_mask(right, torch.ones_like(right, dtype=torch.bool))


def compute_reward_metrics(rewards: Tensor, logps: Tensor, desirable: Tensor, margins: Tensor) -> Metrics:
    """Metrics: rewards [B], log-probs [B] and which are the better ones [B]; margins [N or B], above 0 where the model is right."""
    return {
        "rewards/chosen": mean_over_mask(rewards, desirable),
        "rewards/rejected": mean_over_mask(rewards, ~desirable),
        "rewards/accuracies": compute_accuracy(margins.detach()),
        "logps/chosen": mean_over_mask(logps, desirable),
        "logps/rejected": mean_over_mask(logps, ~desirable),
    }


def compute_pair_metrics(rewards: Tensor, logps: Tensor) -> Metrics:
    """The same for pairs; rewards [2 N], logps [2 N]."""
    chosen, rejected = split_pairs(rewards)
    better = torch.arange(len(rewards), device=rewards.device) % 2 == 0
    return compute_reward_metrics(rewards, logps, better, chosen - rejected)
