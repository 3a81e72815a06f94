"""ReMax (Li et al., arXiv 2310.10505, algorithm 1).

    A_i  = r_i - kl_coef sum_t k1_it - r(greedy completion of the same prompt)
    L_it = -sg(rho_it) A_i log pi(o_it)         rho_it = pi(o_it) / pi_old(o_it), without gradient; 1 in a step's first update

Conventions: the greedy completion is sampled in the same rollout phase; it gets a reward but no update. Its reward is in
`Batch.baseline`, and where that failed its prompt gets advantage 0. The losses of a completion's tokens are added up (`reduction:
fixed_length`). One sample a prompt is fine.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rlkit.algorithms.base import Needs, Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, to_credit
from rlkit.algorithms.objective import Objective
from rlkit.metrics import Metrics
from rlkit.types import Batch, Credit, Signals


class ReMax(Objective):
    """Config and functions of ReMax; the defaults are in recipes/algorithm/remax.yaml."""

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), greedy=True)

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T], one number a sample."""
        assert batch.baseline is not None, "the collector samples greedily where `needs` asks for it"
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        advantages = batch.rewards - penalty.samples - batch.baseline  # [B]
        usable = batch.valid & ~batch.baseline.isnan()
        return to_credit(torch.where(usable, advantages, 0.0), batch, penalty), penalty.state, penalty.metrics
