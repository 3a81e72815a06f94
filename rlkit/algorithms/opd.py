"""Distillation on policy: the sampled reverse KL to a teacher (Agarwal et al., arXiv 2306.13649; Lu, Thinking Machines, 2025).

    s_it = log pi_T(o_it) - log pi_old(o_it)                          nats, held within clip_signal on both sides
    A_it = r_i - mean of r_j over the other samples of its prompt + teacher_coef s_it
    L_it = clipped, and so on                                         as of any other advantage

The policy writes and the teacher pi_T scores each token: E[s] is -KL(pi || pi_T) of a token, and the update is REINFORCE with s as the
reward of this token alone (no sum over later ones: what a token does to them is left out). On a one-token task
J = E[r] - teacher_coef KL(pi || pi_T) is largest at pi_T exp(r / teacher_coef) / Z.

Conventions: rewards are not needed, and without them one sample a prompt is enough; where the teacher is the policy, every advantage is 0.
A failed reward leaves its group, and its sample keeps the teacher's signal, as does a completion that was cut at the limit. With the KL to
a reference in the reward, kl_coef times the k1 of each token is subtracted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from rlkit.algorithms.base import Needs, Peers, State
from rlkit.algorithms.credit import compute_kl_penalty, gather_step_rewards, to_credit
from rlkit.algorithms.objective import Objective
from rlkit.fields import describe_field
from rlkit.metrics import Mean, Metrics
from rlkit.ops import returns
from rlkit.types import Batch, Credit, Signals


class OPD(Objective):
    """Config and functions of distillation on policy; the defaults are in recipes/algorithm/opd.yaml."""

    credit_by_token: ClassVar[bool] = True

    teacher_coef: float = describe_field("weight of the teacher's signal beside the rewards", gt=0.0)
    clip_signal: float = describe_field("largest difference of log-probs that a token is taught with", unit="nats", gt=0.0)

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), old_logprobs=True, teacher=True, rewards=False)

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]:
        """Advantages [B, T], of each token its own."""
        old, teacher = signals.old_logprobs, signals.teacher_logprobs
        assert old is not None and teacher is not None, "the trainer computes what `needs` asks for"
        penalty = compute_kl_penalty(self, batch, signals, state, peers)
        signal = torch.where(batch.mask, teacher.double() - old.double(), 0.0)  # [B, T]
        held = signal.clamp(-self.clip_signal, self.clip_signal)
        step = gather_step_rewards(batch, batch.rewards, peers)
        rewards = returns.leave_one_out(step.rewards, step.valid, step.group, step.groups)[batch.index]  # [B]
        advantages = rewards.unsqueeze(-1) + self.teacher_coef * held - penalty.tokens
        sums = torch.stack([-signal.sum(), (held != signal).sum().double(), batch.mask.sum().double()])
        apart, clipped, tokens = peers.all_reduce_sum(sums).tolist()
        metrics: Metrics = {"teacher/kl": Mean(apart, tokens), "teacher/clip_ratio": Mean(clipped, tokens)}
        return to_credit(advantages, batch, penalty), penalty.state, metrics | penalty.metrics | step.metrics
