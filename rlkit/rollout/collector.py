"""Collects the groups of a step: prompts dealt to the ranks, sampled, scored, and replaced where they have no signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlkit.rollout.filters import has_signal
from rlkit.rollout.sampler import PromptRequest, Sampler
from rlkit.rollout.serialization import group_from_json, group_to_json
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sampling


class PromptStream(Protocol):
    """Where prompts come from; the same on every rank."""

    def take(self, n: int) -> Sequence[PromptRequest]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The groups of a step on this rank."""

    groups: list[Group]  # to learn from
    left_out: list[Group]  # without signal
    rounds: list[list[Group]]  # those sampled in this step: of its prompts, then of the prompts that replace those without signal

    @property
    def refills(self) -> int:
        return max(len(self.rounds) - 1, 0)


@dataclass
class Collector:
    """Takes the prompts of a step and returns their scored groups."""

    sampler: Sampler
    prompts: PromptStream
    ranks: Ranks
    prompts_per_step: int
    samples_per_prompt: int
    sampling: Sampling
    greedy: bool  # whether each prompt gets a greedy completion too
    max_refills: int | None = None  # rounds that replace groups without signal; None: every group is kept
    graded_by: str | None = "accuracy"  # the reward that grades an answer, where a sample has it
    mask_truncated_completions: bool = False  # whether completions that were cut at the limit are left out of the loss
    surplus: list[Group] = field(default_factory=list)  # this rank's groups with a signal that the last step had no place for

    @property
    def max_lag(self) -> int:
        """The most training steps since the weights that sampled a group: surplus waits for one."""
        return 0 if self.max_refills is None else 1

    def take(self) -> RolloutBatch | None:
        """This rank's scored groups of the next step; None where a stop was requested."""
        if self.max_refills is None:
            groups = self._sample_next(0, self.prompts_per_step)
            return None if groups is None else RolloutBatch(groups, [], [groups])
        return self._take_with_signal(self.max_refills)

    def _take_with_signal(self, max_refills: int) -> RolloutBatch | None:
        """Surplus of the step before, then prompts in rounds, each as many as the last rounds' share of signal lets expect to be enough."""
        kept, left_out = self.surplus, list[Group]()
        indices = self._gather_indices(kept)  # of the kept groups of all ranks
        carried = drawn = len(indices)
        rounds: list[list[Group]] = []
        while len(indices) < self.prompts_per_step and len(rounds) <= max_refills:
            count = self._estimate_enough(self.prompts_per_step - len(indices), len(indices) - carried, drawn - carried)
            groups = self._sample_next(drawn, count)
            if groups is None:
                return None
            kept = kept + [g for g in groups if has_signal(g, self.graded_by)]
            left_out += [g for g in groups if not has_signal(g, self.graded_by)]
            indices = self._gather_indices(kept)
            drawn += count
            rounds.append(groups)
        later = {index: place for place, index in enumerate(indices[self.prompts_per_step :])}
        self.surplus = [replace(g, index=later[g.index]) for g in kept if g.index in later]
        return RolloutBatch([g for g in kept if g.index not in later], left_out, rounds)

    def _gather_indices(self, groups: Sequence[Group]) -> list[int]:
        """The sorted indices of the groups of all ranks."""
        return sorted(index for part in self.ranks.gather([g.index for g in groups]) for index in part)

    def _estimate_enough(self, missing: int, found: int, drawn: int) -> int:
        """Prompts of which `missing` have a signal if as many do as before, `found` of `drawn`; never more than a step's."""
        if not drawn:
            return missing
        return min(self.prompts_per_step, -(-missing * drawn // found) if found else self.prompts_per_step)

    def _sample_next(self, first: int, count: int) -> list[Group] | None:
        """This rank's share of the groups of the next `count` prompts, with indices from `first`; None where a stop was requested.

        The share of a tensor-parallel group is on its first rank.
        """
        prompts = list(enumerate(self.prompts.take(count), start=first))
        groups = self.sampler.sample_groups(self.ranks.shard(prompts), self.samples_per_prompt, self.sampling, self.greedy)
        if self.ranks.any_rank(groups is None) or groups is None:
            return None
        return groups if self.ranks.is_tp_leader else []

    def state(self) -> dict[str, Any]:
        """The position in the prompts, and the surplus of all ranks; the same on every rank."""
        surplus = sorted((g for part in self.ranks.gather(self.surplus) for g in part), key=lambda g: g.index)
        return {"prompts": self.prompts.state_dict(), "surplus": [group_to_json(g) for g in surplus]}

    def load(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        share = self.ranks.shard(state["surplus"]) if self.ranks.is_tp_leader else []
        self.surplus = [group_from_json(g) for g in share]
