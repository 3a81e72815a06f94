"""What happens between a prompt and a scored group.

Requests go into the engine together; each finished sample goes to the reward workers while others still generate. Results are taken up
in the order of the prompts, never in that of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlkit import seeds
from rlkit.engines.base import RolloutEngine
from rlkit.rewarding.client import RewardClient
from rlkit.rollout.serialization import group_from_json, group_to_json
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.types import Group, Key, Request, Sample, Sampling, ScoredSample, Stop

GREEDY = -1  # in a key, the sample number of the greedy completion


class Columned(Protocol):
    """A prompt of the data."""

    prompt: Any  # messages or text
    answer: Any  # None: there is none
    columns: Mapping[str, Any]


class PromptRequest(Columned, Protocol):
    """A prompt of the data, ready to be asked."""

    row: int
    draw: int
    tokens: tuple[int, ...]


class Prompts(Protocol):
    """Where prompts come from; the same on every rank."""

    def take(self, n: int) -> Sequence[PromptRequest]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Text(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass
class Sampler:
    """Where a completion is asked for, sampled and judged."""

    engine: RolloutEngine
    judge: RewardClient
    text: Text
    stopping: StopRequest
    seed: int
    ranks: Ranks

    def groups(
        self, prompts: Sequence[tuple[int, PromptRequest]], samples: int, sampling: Sampling, greedy: bool = False
    ) -> list[Group] | None:
        """The scored groups of numbered prompts, in their order, the same on all ranks of a team; None where the run was asked to stop.

        greedy: each group gets the most likely completion too.
        """
        asked: dict[Key, PromptRequest] = {}
        for _, prompt in prompts:
            for n in [*range(samples), *([GREEDY] if greedy else [])]:
                key = Key(prompt.row, prompt.draw, n)
                drawn = replace(sampling, temperature=0.0) if n == GREEDY else sampling
                self.engine.add(Request(key, tuple(prompt.tokens), drawn, seeds.sample_seed(self.seed, key)))
                asked[key] = prompt
        finished: dict[Key, Sample] = {}
        while self.engine.pending:
            if self.ranks.any_tp_rank(self.stopping.requested):
                self.engine.abort()
                return None
            for sample in self.engine.advance():
                heartbeat.beat()
                finished[sample.key] = self._judged_later(sample, asked[sample.key], samples + greedy)
        verdicts = self.ranks.broadcast_tp(self.judge.collect(list(asked)) if self.ranks.is_tp_leader else {})
        scored = {key: score(finished[key], verdicts[key]) for key in asked}
        return [
            Group(number, tuple(scored[Key(p.row, p.draw, n)] for n in range(samples)), scored.get(Key(p.row, p.draw, GREEDY)))
            for number, p in prompts
        ]

    def _judged_later(self, sample: Sample, prompt: PromptRequest, group_size: int) -> Sample:
        sample = replace(sample, text=self.text.decode(sample.tokens.tolist()))
        if not self.ranks.is_tp_leader:
            return sample  # judged once, by the first of the team
        item = {
            **given(prompt),
            "completion": sample.text,
            "completion_length": len(sample.tokens),
            "stop": str(sample.stop),
        }
        self.judge.submit(sample.key, item, group=sample.key[:2], group_size=group_size)
        return sample


def given(prompt: Columned) -> dict[str, Any]:
    """What a reward gets beside the completion; a chat is a list of messages, as functions written elsewhere expect it."""
    asked = prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt)
    return {**prompt.columns, **({} if prompt.answer is None else {"answer": prompt.answer}), "prompt": asked}


def score(sample: Sample, verdict: Any) -> ScoredSample:
    components = {name: outcome.value for name, outcome in verdict.components.items()}
    return ScoredSample(sample, verdict.reward, components, dict(verdict.metrics))


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """What a step's rollout gave this rank."""

    groups: list[Group]  # to learn from
    left_out: list[Group]  # without signal
    rounds: list[list[Group]]  # what was sampled now: a step's prompts, then what replaces those without signal

    @property
    def refills(self) -> int:
        return max(len(self.rounds) - 1, 0)


@dataclass
class Collector:
    """The prompts of a step, dealt to the ranks, asked, sampled and judged."""

    sampler: Sampler
    prompts: Prompts
    ranks: Ranks
    prompts_per_step: int
    samples_per_prompt: int
    sampling: Sampling
    greedy: bool  # whether each prompt gets a greedy completion too
    max_refills: int | None = None  # rounds that replace groups without signal; None: every group is kept
    graded_by: str | None = "accuracy"  # the reward that says whether an answer is right, where a sample has it
    mask_truncated_completions: bool = False  # whether nothing is learned from those that were cut
    surplus: list[Group] = field(default_factory=list)  # this rank's groups with signal that the last step had no room for

    @property
    def max_lag(self) -> int:
        """Steps that the policy may have learned since it sampled a group: surplus waits for one."""
        return 0 if self.max_refills is None else 1

    def take(self) -> RolloutBatch | None:
        """This rank's scored groups of the next step; None where somebody was asked to stop."""
        if self.max_refills is None:
            groups = self._asked(0, self.prompts_per_step)
            return None if groups is None else RolloutBatch(groups, [], [groups])
        return self._with_signal(self.max_refills)

    def _with_signal(self, max_refills: int) -> RolloutBatch | None:
        """Surplus of the step before, then prompts in rounds, each as many as the last rounds' share of signal lets expect to be enough."""
        kept, left_out = self.surplus, []
        numbers = sorted(n for part in self.ranks.gather([g.index for g in kept]) for n in part)  # of the kept groups of all ranks
        carried = asked = len(numbers)
        rounds: list[list[Group]] = []
        while len(numbers) < self.prompts_per_step and len(rounds) <= max_refills:
            wanted = self._enough(self.prompts_per_step - len(numbers), len(numbers) - carried, asked - carried)
            groups = self._asked(asked, wanted)
            if groups is None:
                return None
            kept = kept + [g for g in groups if has_signal(g, self.graded_by)]
            left_out += [g for g in groups if not has_signal(g, self.graded_by)]
            numbers = sorted(n for part in self.ranks.gather([g.index for g in kept]) for n in part)
            asked += wanted
            rounds.append(groups)
        later = {number: place for place, number in enumerate(numbers[self.prompts_per_step :])}
        self.surplus = [replace(g, index=later[g.index]) for g in kept if g.index in later]
        return RolloutBatch([g for g in kept if g.index not in later], left_out, rounds)

    def _enough(self, missing: int, found: int, asked: int) -> int:
        """Prompts of which `missing` will have a signal, if as many do as did; never more than a step's."""
        return min(self.prompts_per_step, -(-missing * asked // found) if found else self.prompts_per_step) if asked else missing

    def _asked(self, first: int, count: int) -> list[Group] | None:
        """This team's share of the next `count` prompts, numbered from `first`, held by its first rank; None where one is asked to stop."""
        numbered = list(enumerate(self.prompts.take(count), start=first))
        groups = self.sampler.groups(self.ranks.shard(numbered), self.samples_per_prompt, self.sampling, self.greedy)
        if self.ranks.any_rank(groups is None) or groups is None:
            return None
        if self.mask_truncated_completions:
            groups = [without_cut(g) for g in groups]
        return groups if self.ranks.is_tp_leader else []

    def state(self) -> dict[str, Any]:
        """Where the prompts stand, and the surplus of all ranks; the same on every rank."""
        surplus = sorted((g for part in self.ranks.gather(self.surplus) for g in part), key=lambda g: g.index)
        return {"prompts": self.prompts.state_dict(), "surplus": [group_to_json(g) for g in surplus]}

    def load(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        mine = self.ranks.shard(state["surplus"]) if self.ranks.is_tp_leader else []
        self.surplus = [group_from_json(g) for g in mine]


def has_signal(group: Group, graded_by: str | None = None) -> bool:
    """Whether the rewards of a group differ, and its grades too where it has any; failed ones say nothing.

    Of right and wrong that is 0 < right ones < all (DAPO, arXiv 2503.14476, section 3.2): a penalty beside the grade makes no signal.
    """
    valid = [s for s in group.samples if s.reward is not None]
    grades = {s.components[graded_by] for s in valid if s.components.get(graded_by) is not None} if graded_by else set()
    return len(grades) != 1 and len({s.reward for s in valid}) > 1


def without_cut(group: Group) -> Group:
    """No token of a completion that was cut counts in a loss, its reward does in the baseline (overlong filtering: DAPO, section 3.4)."""
    masked = [replace(s.sample, mask=s.sample.mask & (s.sample.stop is not Stop.LENGTH)) for s in group.samples]
    return replace(group, samples=tuple(replace(s, sample=m) for s, m in zip(group.samples, masked, strict=True)))
