"""Collects the groups of a step: prompts dealt to the ranks, sampled, scored, and replaced where they have no signal.

With over_ask above 1 more groups are asked than a step learns from, sampling stops once enough are complete, and the next step goes on with
the others. They come first there, the oldest are learned from first, and at most prompts_per_step wait: none is ever too old.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from rlkit.rollout.filters import has_signal
from rlkit.rollout.open_groups import OpenGroup, PromptRequest, Quota
from rlkit.rollout.sampler import SampledGroups, Sampler
from rlkit.rollout.serialization import group_from_json, group_to_json, open_group_from_json, open_group_to_json
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sample, Sampling

Indexed = TypeVar("Indexed", Group, OpenGroup)


class PromptStream(Protocol):
    """Where prompts come from; the same on every rank."""

    def take(self, n: int) -> Sequence[PromptRequest]: ...

    def get(self, row: int, draw: int) -> PromptRequest: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The groups of a step on this rank."""

    groups: list[Group]  # to learn from
    left_out: list[Group]  # without signal
    rounds: list[list[Sequence[Sample]]]  # of each group that was sampled: of the step's prompts, then of those that replace some

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
    over_ask: float = 1.0  # groups that are asked, over those that a step learns from; 1 to 2
    carried_lag: int = 1  # the most steps since a group was first asked, with over_ask above 1
    surplus: list[Group] = field(default_factory=list)  # complete, scored, and not learned from yet; of all ranks, as the next
    open: list[OpenGroup] = field(default_factory=list)  # begun, to be continued

    @property
    def carries(self) -> bool:
        """Whether groups that were begun go on in the next step."""
        return self.over_ask > 1.0

    @property
    def max_lag(self) -> int:
        """The most training steps since the weights that sampled a token: surplus waits for one."""
        return self.carried_lag if self.carries else 0 if self.max_refills is None else 1

    def take(self) -> RolloutBatch | None:
        """This rank's scored groups of the next step; None where a stop was requested.

        First what was carried, then prompts in rounds: one, or with max_refills each as many as the last rounds' share of signal lets
        expect to be enough.
        """
        kept, left_out = self._shard(self.surplus), list[Group]()
        indices, waiting = [g.index for g in self.surplus], self.open
        numbered = len(indices) + len(waiting)
        complete = 0  # groups that were completed in this step, with a signal or without
        rounds: list[list[Sequence[Sample]]] = []
        while len(indices) < self.prompts_per_step and len(rounds) <= (self.max_refills or 0):
            wanted = self._estimate_enough(self.prompts_per_step - len(indices), len(indices) - len(self.surplus), complete)
            asked = max(wanted, math.ceil(self.prompts_per_step * self.over_ask) - len(indices), len(waiting))
            fresh = self.prompts.take(asked - len(waiting))
            waiting = [*waiting, *(OpenGroup(index, prompt) for index, prompt in enumerate(fresh, start=numbered))]
            sampled = self._sample(waiting, wanted)
            if sampled is None:
                return None
            for group in sampled.complete:
                (kept if self.max_refills is None or has_signal(group, self.graded_by) else left_out).append(group)
            rounds.append([*map(list_samples, sampled.complete), *(g.samples for g in sampled.open)])
            indices = sorted(index for part in self.ranks.gather([g.index for g in kept]) for index in part)
            waiting = self._gather(sampled.open) if self.carries else []
            numbered += len(fresh)
            complete += asked - len(waiting)
        return self._carry(kept, left_out, rounds, indices, waiting)

    def _carry(
        self,
        kept: list[Group],
        left_out: list[Group],
        rounds: list[list[Sequence[Sample]]],
        indices: list[int],
        waiting: Sequence[OpenGroup],
    ) -> RolloutBatch:
        """The first groups of a step, in the order in which they were asked; the others wait. indices: of what all ranks kept."""
        learned = set(indices[: self.prompts_per_step])
        surplus = self._gather([g for g in kept if g.index not in learned]) if len(indices) > len(learned) else []
        places = {index: place for place, index in enumerate(sorted([g.index for g in surplus] + [g.index for g in waiting]))}
        self.surplus = [replace(g, index=places[g.index]) for g in surplus]
        self.open = [replace(g, index=places[g.index], age=g.age + 1) for g in waiting]
        return RolloutBatch([g for g in kept if g.index in learned], left_out, rounds)

    def _estimate_enough(self, missing: int, found: int, drawn: int) -> int:
        """Prompts of which `missing` have a signal if as many do as before, `found` of `drawn`; never more than a step's."""
        if not drawn:
            return missing
        return min(self.prompts_per_step, -(-missing * drawn // found) if found else self.prompts_per_step)

    def _sample(self, groups: Sequence[OpenGroup], wanted: int) -> SampledGroups | None:
        """This rank's share of the groups; None where a stop was requested. wanted: complete ones that are enough, where some may wait.

        The share of a tensor-parallel group is on its first rank.
        """
        quota = Quota(wanted, self.carried_lag) if self.carries else None
        sampled = self.sampler.sample(self.ranks.shard(groups), self.samples_per_prompt, self.sampling, self.greedy, quota)
        if self.ranks.any_rank(sampled is None) or sampled is None:
            return None
        return sampled if self.ranks.is_tp_leader else SampledGroups([], [])

    def _shard(self, groups: Sequence[Group]) -> list[Group]:
        """This rank's share of groups that all ranks have."""
        return list(self.ranks.shard(groups)) if self.ranks.is_tp_leader else []

    def _gather(self, groups: Sequence[Indexed]) -> list[Indexed]:
        """The groups of all ranks, in the order in which they were asked."""
        return sorted((g for part in self.ranks.gather(list(groups)) for g in part), key=lambda g: g.index)

    def state(self) -> dict[str, Any]:
        """The position in the prompts, and the groups that wait; the same on every rank."""
        waiting = {"surplus": [group_to_json(g) for g in self.surplus], "open": [open_group_to_json(g) for g in self.open]}
        return {"prompts": self.prompts.state_dict(), **waiting}

    def load(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self.surplus = [group_from_json(g) for g in state["surplus"]]
        self.open = [open_group_from_json(g, self.prompts.get) for g in state.get("open", ())]


def list_samples(group: Group) -> list[Sample]:
    """The samples of a group, the greedy one too."""
    return [s.sample for s in (*group.samples, *([group.greedy] if group.greedy else []))]
