"""REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740, section 2).

    R_i  = r_i - kl_coef sum_t k1_it
    A_i  = R_i - mean of R_j over the other samples of the same prompt
    L_it = -sg(rho_it) A_i log pi(o_it)         rho_it = pi(o_it) / pi_old(o_it), without gradient; 1 in a step's first update

Conventions: the completion is one action, so the KL of all its tokens is in its reward, and its tokens' losses are added up (`reduction:
fixed_length`). A failed reward leaves its group and gets advantage 0. At least two samples a prompt.
"""

from __future__ import annotations

from rlkit.algorithms.base import Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, gather_step_rewards, to_credit
from rlkit.algorithms.objective import GroupObjective
from rlkit.metrics import Metrics
from rlkit.ops import returns
from rlkit.types import Batch, Credit, Signals


class RLOO(GroupObjective):
    """Config and functions of RLOO; the defaults are in recipes/algorithm/rloo.yaml."""

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T], one number a sample."""
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        step = gather_step_rewards(batch, batch.rewards - penalty.samples, peers)
        advantages = returns.leave_one_out(step.rewards, step.valid, step.group, step.groups)[batch.index]  # [B]
        return to_credit(advantages, batch, penalty), penalty.state, penalty.metrics | step.metrics
