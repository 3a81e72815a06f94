"""Samples completions and has them scored: prompts in, scored groups out.

Requests go into the engine together; each finished sample goes to the reward workers while others are still being sampled. Results are in
the order of the prompts, never in that of arrival.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Protocol

import torch

from rlkit import seeds
from rlkit.engines.base import RolloutEngine
from rlkit.environments.base import EpisodeEnd, EpisodeFailure
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import OutcomeKind, SampleReward
from rlkit.rollout.episodes import (
    TOOL_CALLS,
    Episode,
    EpisodeRequest,
    EpisodeRollout,
    EpisodeSettings,
    WrittenBy,
    share_prompt,
    split_turns,
)
from rlkit.rollout.open_groups import (
    GREEDY,
    TOKENS_BETWEEN_COUNTS,
    GroupProgress,
    OpenGroup,
    PromptRequest,
    Quota,
    RewardInput,
)
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.types import Group, Key, Request, Sample, Sampling, ScoredSample


class Verdict(Enum):
    """What a count of complete groups decides."""

    CONTINUE = auto()
    ENOUGH = auto()
    STOPPED = auto()  # the run was asked to stop


@dataclass(frozen=True, eq=False)
class SampledGroups:
    """What was asked: the complete groups, scored, and those that stay open."""

    complete: list[Group]
    open: list[OpenGroup]


class SampleStream(Protocol):
    """The part of a rollout engine that a stream of episodes has too."""

    @property
    def pending(self) -> int: ...

    def advance(self) -> list[Sample]: ...

    def abort(self) -> object: ...


class Decoder(Protocol):
    def decode(self, ids: Sequence[int], *, special: bool = False) -> str: ...


@dataclass
class Sampler:
    """The rollout engine and the rewards of its samples."""

    engine: RolloutEngine
    rewards: RewardClient
    decoder: Decoder
    stopping: StopRequest
    seed: int
    ranks: Ranks
    episodes: EpisodeSettings | None = None  # None: a completion is one turn, and nothing answers it

    def sample_groups(
        self,
        prompts: Sequence[tuple[int, PromptRequest]],
        samples: int,
        sampling: Sampling,
        greedy: bool = False,
        graders: Collection[str] | None = None,
    ) -> list[Group] | None:
        """The scored groups of (index, prompt), in their order, the same on all ranks of a tensor-parallel group; None where a stop was
        requested.

        greedy: each group gets the most likely completion too. graders: the rewards that score the samples; None: those of a step.
        """
        sampled = self.sample([OpenGroup(index, prompt) for index, prompt in prompts], samples, sampling, greedy, graders=graders)
        return None if sampled is None else sampled.complete

    def sample(
        self,
        groups: Sequence[OpenGroup],
        samples: int,
        sampling: Sampling,
        greedy: bool = False,
        quota: Quota | None = None,
        graders: Collection[str] | None = None,
    ) -> SampledGroups | None:
        """As `sample_groups`, of groups that may have been begun before. With a quota, a collective call of all ranks, some stay open.

        With a quota the samples of a group are scored once all of them are there: an open group has no scores that a checkpoint would
        have to hold.
        """
        progress = GroupProgress(groups, samples, greedy)
        source, episodes = self._start(progress, sampling)
        tokens = 0
        heartbeat.advance(len(progress.finished), len(progress.group_of), "samples")
        while (verdict := self._decide(source, progress, quota)) is Verdict.CONTINUE:
            for sample in self._advance(source, quota):
                progress.add(sample)
                for key in [sample.key] if quota is None else progress.list_members(sample.key):
                    prompt = progress.group_of[key].prompt
                    progress.finished[key] = self._submit(progress.finished[key], prompt, progress.group_size, episodes.get(key), graders)
                tokens += int(sample.mask.sum())
                heartbeat.advance(len(progress.finished), len(progress.group_of), "samples", tokens)
        if verdict is Verdict.STOPPED:
            source.abort()
            return None
        left = [] if quota is None else progress.list_open(self.engine.abort())
        complete = progress.list_complete()
        keys = [key for key in progress.group_of if progress.list_members(key)]
        rewards = self.ranks.broadcast_tp(self.rewards.collect(keys) if self.ranks.is_tp_leader else {})
        turn_weight = self.episodes.turn_weight if self.episodes else 0.0
        scored = {key: join_reward(progress.finished[key], rewards[key], episodes.get(key), turn_weight) for key in keys}
        return SampledGroups([build_group(g.index, g.prompt, samples, scored) for g in complete], left)

    def _decide(self, source: SampleStream, progress: GroupProgress, quota: Quota | None) -> Verdict:
        """Whether to go on; with a quota the same on all ranks, by counts, never by time."""
        if quota is None:
            if not source.pending:
                return Verdict.ENOUGH
            return Verdict.STOPPED if self.ranks.any_tp_rank(self.stopping.requested) else Verdict.CONTINUE
        own = [len(progress.list_complete()), progress.count_missing(quota.max_age), source.pending] if self.ranks.is_tp_leader else [0] * 3
        counts = self.ranks.all_reduce_sum(torch.tensor([*own, int(self.stopping.requested)]))
        complete, waited_for, pending, stopped = counts.tolist()
        if stopped:
            return Verdict.STOPPED
        return Verdict.ENOUGH if not pending or (complete >= quota.complete and not waited_for) else Verdict.CONTINUE

    def _advance(self, source: SampleStream, quota: Quota | None) -> Iterator[Sample]:
        """The samples that finish before the next decision."""
        for _ in range(1 if quota is None else max(TOKENS_BETWEEN_COUNTS // self.engine.tokens_per_advance, 1)):
            if source.pending:
                yield from source.advance()

    def _start(self, progress: GroupProgress, sampling: Sampling) -> tuple[SampleStream, Mapping[Key, Episode]]:
        """What samples all that is not finished, and the episodes that end in it, of an environment."""
        greedy = replace(sampling, temperature=0.0)
        missing = [(key, group.prompt) for key, group in progress.group_of.items() if key not in progress.finished]
        of_sample = {key: greedy if key.sample == GREEDY else sampling for key, _ in missing}
        if self.episodes is None:
            for key, prompt in missing:
                begun = progress.begun.get(key)
                seed = seeds.sample_seed(self.seed, key, 0 if begun is None else len(begun.tokens))
                self.engine.add(Request(key, tuple(prompt.tokens), of_sample[key], seed, begun))
            return self.engine, {}
        requests = [EpisodeRequest(key, build_reward_item(prompt), of_sample[key]) for key, prompt in missing]
        rollout = EpisodeRollout(self.episodes, self.engine, self.ranks, self.seed, requests)
        return rollout, rollout.ended

    def _submit(
        self, sample: Sample, prompt: PromptRequest, group_size: int, episode: Episode | None, graders: Collection[str] | None
    ) -> Sample:
        """The sample with its text, submitted to the rewards by the first rank of a tensor-parallel group."""
        tokens = sample.tokens.tolist()
        sample = replace(sample, text=self.decoder.decode(tokens))
        if self.ranks.is_tp_leader:
            item = {
                **build_reward_item(prompt),
                "completion": sample.text,
                "completion_length": int(sample.mask.sum()),
                "stop": str(sample.stop),
                **({"completion_ids": tokens} if self.rewards.asks_for("completion_ids") else {}),
                **({"prompt_text": self.decoder.decode(prompt.tokens, special=True)} if self.rewards.asks_for("prompt_text") else {}),
                **(build_episode_item(episode, sample, self.decoder) if episode else {}),
            }
            self.rewards.submit(sample.key, item, group=sample.key.of_prompt, group_size=group_size, only=graders)
        return sample


def build_group(index: int, prompt: PromptRequest, samples: int, scored: Mapping[Key, ScoredSample]) -> Group:
    """The samples of a prompt, and its greedy one where it has one."""
    every = [found for n in [*range(samples), GREEDY] if (found := scored.get(Key(prompt.row, prompt.draw, n)))]
    own = share_prompt([s.sample for s in every], tuple(prompt.tokens))
    every = [replace(s, sample=sample) for s, sample in zip(every, own, strict=True)]
    return Group(index, tuple(every[:samples]), every[samples] if len(every) > samples else None, prompt.answer)


def build_reward_item(prompt: RewardInput) -> dict[str, Any]:
    """What a reward gets beside the completion; a chat is a list of messages, as functions written elsewhere expect it."""
    messages = prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt)
    return {**prompt.columns, **({} if prompt.answer is None else {"answer": prompt.answer}), "prompt": messages}


def build_episode_item(episode: Episode, sample: Sample, decoder: Decoder) -> dict[str, Any]:
    """What a reward gets of an episode: its prompt and messages, and as completion what the policy wrote in all turns."""
    end, turns = episode.end, [decoder.decode(ids) for by, ids in split_turns(sample) if by is WrittenBy.POLICY]
    item: dict[str, Any] = {"conversation": episode.conversation, "turns": turns, "completion": "\n".join(turns)}
    if isinstance(end, EpisodeEnd):
        return {**item, "environment_reward": end.reward, "environment_metrics": dict(end.metrics), "environment_failure": None}
    why = end.why if isinstance(end, EpisodeFailure) else ""
    return {**item, "environment_reward": None, "environment_metrics": {}, "environment_failure": why}


def join_reward(sample: Sample, reward: SampleReward, episode: Episode | None = None, turn_weight: float = 0.0) -> ScoredSample:
    """A sample with its reward; none where its environment failed, whatever other rewards gave. turn_weight: of the rewards of turns."""
    components = {name: outcome.value for name, outcome in reward.components.items() if outcome.kind is not OutcomeKind.SKIPPED}
    if episode is None:
        return ScoredSample(sample, reward.reward, components, dict(reward.metrics))
    total = None if isinstance(episode.end, EpisodeFailure) else reward.reward
    turns = tuple((place, turn_weight * own) for place, own in episode.turn_rewards) if turn_weight and total is not None else ()
    return ScoredSample(sample, total, components, {**reward.metrics, TOOL_CALLS: float(episode.tool_calls)}, turns)
