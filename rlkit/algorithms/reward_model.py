"""Reward modelling: a score r for whole completions, learned from pairs (Bradley and Terry, 1952; Ouyang et al., arXiv 2203.02155).

    L = -log sigmoid(r_chosen - r_rejected)          loss = mean over pairs

The score is a linear function of the last token's state; it starts at 0, where the loss is ln 2. Only differences of scores mean anything.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from rlkit.algorithms.offline import Kind, OfflineObjective, Unit, compute_pair_metrics, split_pairs, sum_logprobs
from rlkit.metrics import Metrics
from rlkit.ops import preference
from rlkit.types import OfflineMicroBatch


class RewardModel(OfflineObjective):
    """Config and functions of reward modelling."""

    reads: ClassVar[Kind] = "pairs"
    unit: ClassVar[Unit] = "pair"
    learner: ClassVar[Literal["policy", "reward_model"]] = "reward_model"

    name: Literal["reward_model"]

    def compute_losses(self, rows: OfflineMicroBatch) -> tuple[Tensor, Metrics]:
        """One value a pair, [N]."""
        scores = sum_logprobs(rows)  # [2 N], each of one number
        chosen, rejected = split_pairs(scores)
        watched = compute_pair_metrics(scores, scores)
        return preference.dpo_loss(chosen - rejected, 1.0), {name: m for name, m in watched.items() if not name.startswith("logps/")}
