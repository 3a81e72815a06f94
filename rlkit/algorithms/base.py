"""The interface of an algorithm: its needs, rewards to credit, and one unreduced loss for the policy.

Other ranks are reached through the argument `peers`; an algorithm knows no engine, no rank, no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlkit.metrics import Metrics
from rlkit.ops.masking import Reduction
from rlkit.types import Batch, Credit, MicroBatch, Signals


class Peers(Protocol):
    """Sums, and one scalar a sample, over all ranks."""

    def gather_by_index(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """values [B] of the samples at `index` [B] of the step -> [N], the values of all samples in the step's order."""
        ...

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a tensor that has one shape on each."""
        ...


@dataclass(frozen=True)
class Needs:
    """What must be computed before the update; nothing else is."""

    old_logprobs: bool = False
    reference: bool = False
    greedy: bool = False  # a greedy completion of each prompt, its reward in Batch.baseline
    values: bool = False  # a critic
    teacher: bool = False  # log-probs by model.teacher
    rewards: bool = True  # False: it learns without any, too
    max_refills: int | None = None  # rounds that replace groups without signal by other prompts; None: every group is kept


@dataclass(frozen=True)
class State:
    """What an algorithm keeps from step to step; it is in the checkpoint, since it affects training. Most keep nothing."""


class Algorithm(Protocol):
    """A frozen, typed config with pure functions."""

    @property
    def reduction(self) -> Reduction: ...

    @property
    def min_samples_per_prompt(self) -> int: ...

    @property
    def inert_without_advantage(self) -> bool:
        """Whether loss and gradient of a sample are identically zero where its advantages are; such samples are left out."""
        ...

    def init_state(self) -> State:
        """The state before the first step."""
        ...

    def find_conflicts(self, sampling_truncated: bool, samples_per_prompt: int, max_lag: int = 0) -> list[str]:
        """Why this algorithm does not fit the rest of a recipe; empty where it does.

        max_lag: training steps that a token may be older than the policy that learns from it.
        """
        ...

    def needs(self, updates_per_step: int) -> Needs: ...

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Peers) -> tuple[Credit, State, Metrics]: ...

    def compute_policy_loss(self, rows: MicroBatch) -> tuple[Tensor, Metrics]:
        """One value a token, [B, T], and metrics to watch."""
        ...
