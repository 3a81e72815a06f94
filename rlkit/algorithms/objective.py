"""The policy's loss, shared by all online algorithms, and the terms added to it or to the reward. B samples, T tokens.

    L_it = w_it S(rho_it, A_it) + kl_coef k_it - entropy_coef H_it        rho_it = pi(o_it) / pi_old(o_it)

S is one of `POLICY_LOSSES`. w_it corrects for a sampler that differs from pi_old: w = exp(log pi_old - log pi_rollout), without gradient,
clipped at a cap, or 0 above it and below a floor, a token's own or its sequence's geometric mean. DPPO knows the sampler alone: its rho and
w are of pi to pi_rollout. k is k2 or k3 of a reference; k1 goes into the reward.
An algorithm adds `compute_advantages`, rewards to advantages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from rlkit.algorithms.base import Needs, State
from rlkit.errors import UserError
from rlkit.fields import describe_field
from rlkit.metrics import Metrics, effective_share, max_over_mask, mean_over_mask
from rlkit.ops import kl, surrogate, values
from rlkit.ops.masking import Reduction
from rlkit.types import MicroBatch

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}
REFUSED_KL = {
    ("loss", "k1"): "the gradient of k1 is zero in expectation, as a loss it is noise alone; take kl_estimator=k2 or k3, or kl_in=reward",
    ("reward", "k2"): "as a reward k2 is a biased estimate of the KL, and its gradient is another's; take kl_estimator=k1, or kl_in=loss",
    ("reward", "k3"): "as a reward the gradient of k3 is not that of the KL; take kl_estimator=k1, or kl_in=loss",
}  # arXiv 2506.09477


@dataclass(frozen=True)
class KLState(State):
    """The coefficient of the next step."""

    kl_coef: float


class Objective(BaseModel):
    """Keys and functions of the policy's loss; the defaults are in recipes/algorithm/."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    credit_by_token: ClassVar[bool] = False  # whether the tokens of one sample may have different advantages

    name: str = describe_field("which algorithm: algorithm=NAME")
    loss: Literal["clipped", "dual_clip", "gspo", "cispo", "sapo", "dppo", "reinforce"] = describe_field(
        "of the policy; gspo: ratios of whole sequences; dppo: masked by differences of probabilities; reinforce: no clip"
    )
    clip_low: float = describe_field(
        "the ratio is clipped to [1 - clip_low, 1 + clip_high]; of clipped, dual_clip, gspo and cispo. Of dppo: how far the probability of "
        "a bad token may fall below the sampler's",
        gt=0.0,
        lt=1.0,
    )
    clip_high: float = describe_field("the upper end of the clip; of dppo: how far that of a good token may rise above it", gt=0.0)
    dual_clip: float = describe_field("of dual_clip: the loss of a bad token is at most this times its advantage", gt=1.0)
    sapo_positive: float = describe_field("of sapo: temperature where the advantage is positive", gt=0.0)
    sapo_negative: float = describe_field("of sapo: temperature where it is not", gt=0.0)
    reduction: Reduction = describe_field("of token losses to one number; fixed_length divides by max_completion_tokens")
    kl_coef: float = describe_field("weight of the KL to the starting model; 0: no reference is loaded", ge=0.0)
    kl_in: Literal["loss", "reward"] = describe_field("where the KL counts: in the loss (k2 or k3), or in the reward (k1)")
    kl_estimator: Literal["k1", "k2", "k3"] = describe_field("of the KL of a token (Schulman, approximating KL divergence)")
    kl_target: float | None = describe_field(
        "target KL of a completion: kl_coef is adapted to it; null: kl_coef is fixed", unit="nats", gt=0.0
    )
    entropy_coef: float = describe_field("weight of an entropy bonus", ge=0.0)
    correction: Literal["truncate", "mask", "none"] = describe_field(
        "importance weight trainer / sampler: clipped at the cap (truncate), 0 above it and below the floor (mask), or none"
    )
    correction_level: Literal["token", "sequence"] = describe_field("a token's own ratio, or the geometric mean of its sequence")
    correction_cap: float = describe_field("largest importance weight", ge=1.0)
    correction_floor: float = describe_field("of correction=mask: smallest importance weight; 0: no floor", ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def check_keys(self) -> Objective:
        """Checks across keys. Raises ValueError."""
        reason = REFUSED_KL.get((self.kl_in, self.kl_estimator))
        if reason:
            raise ValueError(f"algorithm.kl_in={self.kl_in} with algorithm.kl_estimator={self.kl_estimator} is refused: {reason}")
        if self.kl_target is not None and self.kl_coef == 0.0:
            raise ValueError("algorithm.kl_target adapts algorithm.kl_coef, which is 0 and would stay so; set kl_coef above 0")
        if self.loss == "gspo" and self.credit_by_token:
            raise ValueError(
                "algorithm.loss=gspo weighs whole sequences, and the advantages of this algorithm differ from token to token; "
                "take loss=clipped, or an algorithm whose advantage is one number a sample"
            )
        if self.loss == "dppo" and self.correction == "none":
            raise ValueError(
                "algorithm.loss=dppo weighs each token by trainer / sampler, and algorithm.correction=none leaves that weight out; set "
                "algorithm.correction=truncate or mask"
            )
        if self.correction_floor > 0.0 and self.correction != "mask":
            raise ValueError(
                f"algorithm.correction_floor={self.correction_floor} drops tokens, and algorithm.correction={self.correction} does not; "
                "set algorithm.correction=mask, or correction_floor=0"
            )
        return self

    @property
    def min_samples_per_prompt(self) -> int:
        return 1

    @property
    def inert_without_advantage(self) -> bool:
        return self.entropy_coef == 0.0 and not (self.kl_coef > 0.0 and self.kl_in == "loss")

    def init_state(self) -> State:
        return State() if self.kl_target is None else KLState(self.kl_coef)

    def find_conflicts(self, sampling_truncated: bool, samples_per_prompt: int, max_lag: int = 0) -> list[str]:
        """Why this algorithm does not fit the rest of a recipe; empty where it does.

        max_lag: training steps that a token may be older than the policy that learns from it.
        """
        reasons = []
        if samples_per_prompt < self.min_samples_per_prompt:
            reasons.append(
                f"samples_per_prompt={samples_per_prompt} is too few for algorithm={self.name}, whose baseline is the group; "
                f"set it to at least {self.min_samples_per_prompt}"
            )
        if sampling_truncated and self.correction != "none":
            reasons.append(
                f"algorithm.correction={self.correction} compares the log-probs of sampler and trainer, and sampling.top_p, top_k or min_p "
                "make the two incomparable; set top_p=1, top_k=0 and min_p=0, or algorithm.correction=none"
            )
        if max_lag and self.correction == "none":
            steps = "1 step" if max_lag == 1 else f"{max_lag} steps"
            reasons.append(
                f"tokens may be up to {steps} older than the policy that learns from them (rollout.over_ask above 1 and "
                "algorithm.dynamic_sampling carry samples over), and algorithm.correction=none leaves that uncorrected; set "
                "algorithm.correction=truncate or mask"
            )
        if self.needs(1).values and not isinstance(self, CriticObjective):
            reasons.append(
                f"algorithm={self.name}: {type(self).__name__}.needs asks for a critic, and the class has no keys and no loss for one; "
                "let it inherit from rlkit.algorithms.CriticObjective"
            )
        return reasons

    def needs(self, updates_per_step: int) -> Needs:
        reference = self.kl_coef > 0.0
        before = reference and (self.kl_in == "reward" or self.kl_target is not None)  # a KL of the whole step, before it
        return Needs(old_logprobs=updates_per_step > 1 or before, reference=reference)

    def compute_policy_loss(self, rows: MicroBatch) -> tuple[Tensor, Metrics]:
        """The surrogate loss with the KL and entropy terms; [B, T], and metrics."""
        anchor = rows.rollout_logprobs if self.loss == "dppo" else rows.old_logprobs
        log_ratios = surrogate.log_ratio(rows.logprobs, anchor, rows.mask)
        if self.loss == "gspo":
            log_ratios = surrogate.sequence_log_ratio(log_ratios, rows.mask)
        loss, cut = POLICY_LOSSES[self.loss](self, rows, log_ratios)
        metrics: Metrics = {
            "ratio/max_deviation": max_over_mask((log_ratios.detach().exp() - 1.0).abs(), rows.mask),
            "clip_ratio/low_mean": mean_over_mask((cut & (log_ratios < 0)).float(), rows.mask),
            "clip_ratio/high_mean": mean_over_mask((cut & (log_ratios > 0)).float(), rows.mask),
        }
        if self.correction != "none":
            weights, seen = self.compute_correction(rows)
            loss = loss * weights
            metrics |= seen
        if self.kl_coef > 0.0 and self.kl_in == "loss":
            assert rows.ref_logprobs is not None, "the trainer computes what `needs` asks for"
            divergence = ESTIMATORS[self.kl_estimator](torch.where(rows.mask, rows.logprobs, rows.ref_logprobs), rows.ref_logprobs)
            loss = loss + (self.kl_coef if rows.kl_coef is None else rows.kl_coef) * divergence
            metrics["kl"] = mean_over_mask(divergence, rows.mask)
        if self.entropy_coef > 0.0:
            loss = loss - self.entropy_coef * rows.entropy
        return loss, metrics

    def compute_correction(self, rows: MicroBatch) -> tuple[Tensor, Metrics]:
        """Importance weights [B, T] of the tokens, and metrics of the weights and of the ratios before the cap."""
        trained = rows.logprobs if self.loss == "dppo" else rows.old_logprobs
        log_ratios = surrogate.log_ratio(trained, rows.rollout_logprobs, rows.mask)
        if self.correction_level == "sequence":
            log_ratios = surrogate.sequence_log_ratio(log_ratios, rows.mask)
        raw = surrogate.importance_weights(log_ratios, float("inf"), drop=False)
        weights = surrogate.importance_weights(log_ratios, self.correction_cap, self.correction == "mask", self.correction_floor)
        metrics: Metrics = {
            "sampling/importance_sampling_ratio/mean": mean_over_mask(raw, rows.mask),
            "sampling/importance_sampling_ratio/max": max_over_mask(raw, rows.mask),
            "sampling/effective_sample_size": effective_share(weights, rows.mask),
        }
        return weights, metrics


class GroupObjective(Objective):
    """For algorithms whose baseline is the group: they can require groups that have a signal (DAPO, arXiv 2503.14476, section 3.2)."""

    dynamic_sampling: bool = describe_field(
        "true: groups with equal rewards, or accuracies, are replaced by other prompts; surplus goes to the next step"
    )
    max_refills: int = describe_field("rounds of replacement; then the step uses what it has", ge=0)

    @property
    def min_samples_per_prompt(self) -> int:
        return 2  # a group of one has no baseline but itself

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), max_refills=self.max_refills if self.dynamic_sampling else None)


class CriticObjective(Objective):
    """For algorithms with a critic.

    `compute_advantages` reads the critic's values from Signals.values and returns what the critic learns in Credit.returns.
    """

    value_clip: float = describe_field("how far an update may move a value from its value before the step", gt=0.0)
    critic_lr: float = describe_field(
        "peak learning rate of the critic, which has an optimizer of its own, on the schedule of optim", gt=0.0
    )
    critic_warmup_steps: int = describe_field(
        "at the start in which only the critic learns; the policy's warm-up begins after them", unit="steps", ge=0
    )

    @property
    def inert_without_advantage(self) -> bool:
        return False  # the critic learns from every sample

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), values=True)

    def count_critic_warmup_updates(self, steps: int, updates_per_step: int) -> int:
        """Updates at the start in which only the critic learns. Raises UserError where the policy would learn in none of the steps."""
        if 0 < steps <= self.critic_warmup_steps:
            raise UserError(
                f"algorithm.critic_warmup_steps={self.critic_warmup_steps}: in them only the critic learns, and of steps={steps} none is "
                f"left for the policy; set algorithm.critic_warmup_steps to at most {steps - 1}, or more steps"
            )
        return self.critic_warmup_steps * updates_per_step

    def compute_value_loss(self, seen: Tensor, before: Tensor, returned: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
        """The critic's loss from its values now and before the update, both [B, T], and Credit.returns; one value a token, [B, T]."""
        known = mask & ~returned.isnan()
        loss, cut = values.value_clip_loss(seen, before, torch.where(known, returned, before), self.value_clip)
        metrics: Metrics = {
            "critic/squared_error": mean_over_mask((seen - torch.where(known, returned, seen)).square(), known),
            "critic/clip_ratio": mean_over_mask(cut.float(), known),
        }
        return torch.where(known, loss, 0.0), metrics


Surrogate = Callable[[Objective, MicroBatch, Tensor], tuple[Tensor, Tensor]]


def mask_logprobs(rows: MicroBatch) -> Tensor:
    """The policy's log-probs where they count, 0 elsewhere; [B, T]."""
    return torch.where(rows.mask, rows.logprobs, torch.zeros_like(rows.logprobs))


def compute_ppo_clip(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.ppo_clip_loss(log_ratios, rows.advantages, config.clip_low, config.clip_high)


def compute_dual_clip(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.dual_clip_loss(log_ratios, rows.advantages, config.clip_low, config.clip_high, config.dual_clip)


def compute_cispo(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.cispo_loss(log_ratios, mask_logprobs(rows), rows.advantages, config.clip_low, config.clip_high)


def compute_sapo(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.sapo_loss(log_ratios, rows.advantages, config.sapo_positive, config.sapo_negative)


def compute_dppo(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.dppo_loss(mask_logprobs(rows), rows.rollout_logprobs, rows.advantages, config.clip_low, config.clip_high)


def compute_reinforce(config: Objective, rows: MicroBatch, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    return surrogate.reinforce_loss(log_ratios, mask_logprobs(rows), rows.advantages)


POLICY_LOSSES: dict[str, Surrogate] = {
    "clipped": compute_ppo_clip,
    "dual_clip": compute_dual_clip,
    "gspo": compute_ppo_clip,  # of the sequence's ratio
    "cispo": compute_cispo,
    "sapo": compute_sapo,
    "dppo": compute_dppo,  # its ratio is that of the weights
    "reinforce": compute_reinforce,
}
