"""Groups that are being sampled: which samples are there, which were begun, and when enough groups are complete.

A group stays open where the engine was stopped before its last sample ended; the next step goes on with its samples where they are. Whole
groups are carried, never dropped and never cut to their first samples: what is learned is unbiased in length (APRIL, arXiv 2509.18521).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlkit.types import Key, Sample, Stop

GREEDY = -1  # in a key, the sample index of the greedy completion
TOKENS_BETWEEN_COUNTS = 8  # of each sample, between two counts of complete groups over all ranks


class RewardInput(Protocol):
    """The part of a prompt of the data that rewards get."""

    @property
    def prompt(self) -> Any: ...  # messages or text

    @property
    def answer(self) -> Any: ...  # None: there is none

    @property
    def columns(self) -> Mapping[str, Any]: ...


class PromptRequest(RewardInput, Protocol):
    """A prompt of the data, with its token ids."""

    @property
    def row(self) -> int: ...

    @property
    def draw(self) -> int: ...

    @property
    def tokens(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, eq=False)
class OpenGroup:
    """A prompt whose samples are not all there; without any it is a new one."""

    index: int  # position of the prompt in the step, over all ranks
    prompt: PromptRequest
    age: int = 0  # steps since it was first asked
    samples: tuple[Sample, ...] = ()  # finished ones, and begun ones with stop ABORTED


@dataclass(frozen=True)
class Quota:
    """What ends sampling while groups are open, counted over all ranks."""

    complete: int  # groups that are enough
    max_age: int  # groups of this age are waited for: one step later their tokens would be too old


class GroupProgress:
    """The samples of some groups, as they finish."""

    def __init__(self, groups: Sequence[OpenGroup], samples: int, greedy: bool) -> None:
        numbers = [*range(samples), *([GREEDY] if greedy else [])]
        self.groups, self.group_size = groups, len(numbers)
        self._members = {g.index: [Key(g.prompt.row, g.prompt.draw, n) for n in numbers] for g in groups}
        self.group_of = {key: group for group in groups for key in self._members[group.index]}  # in the order of the groups
        had = {sample.key: sample for group in groups for sample in group.samples}
        self.begun = {key: sample for key, sample in had.items() if sample.stop is Stop.ABORTED}
        self.finished = {key: sample for key, sample in had.items() if sample.stop is not Stop.ABORTED}
        self._missing = {index: sum(key not in self.finished for key in keys) for index, keys in self._members.items()}

    def add(self, sample: Sample) -> None:
        """A sample that has finished."""
        self.finished[sample.key] = sample
        self._missing[self.group_of[sample.key].index] -= 1

    def list_members(self, key: Key) -> list[Key]:
        """The samples of the group of a sample; empty as long as one is missing."""
        index = self.group_of[key].index
        return [] if self._missing[index] else self._members[index]

    def list_complete(self) -> list[OpenGroup]:
        """The groups whose samples are all there."""
        return [group for group in self.groups if not self._missing[group.index]]

    def count_missing(self, max_age: int) -> int:
        """Groups of this age that are not complete."""
        return sum(group.age >= max_age and self._missing[group.index] > 0 for group in self.groups)

    def list_open(self, aborted: Sequence[Sample]) -> list[OpenGroup]:
        """The groups that stay open, with all their tokens so far; aborted: what the engine had of the samples that did not finish."""
        known = {**self.finished, **{sample.key: sample for sample in aborted if len(sample.tokens)}}
        return [
            OpenGroup(group.index, group.prompt, group.age, tuple(known[key] for key in self._members[group.index] if key in known))
            for group in self.groups
            if self._missing[group.index]
        ]
