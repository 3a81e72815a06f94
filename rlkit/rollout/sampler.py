"""Samples completions and has them scored: prompts in, scored groups out.

Requests go into the engine together; each finished sample goes to the reward workers while others are still being sampled. Results are in
the order of the prompts, never in that of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlkit import seeds
from rlkit.engines.base import RolloutEngine
from rlkit.environments.base import EpisodeEnd, EpisodeFailure
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import SampleReward
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
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.types import Group, Key, Request, Sample, Sampling, ScoredSample

GREEDY = -1  # in a key, the sample index of the greedy completion


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
        self, prompts: Sequence[tuple[int, PromptRequest]], samples: int, sampling: Sampling, greedy: bool = False
    ) -> list[Group] | None:
        """The scored groups of (index, prompt), in their order, the same on all ranks of a tensor-parallel group; None where a stop was
        requested.

        greedy: each group gets the most likely completion too.
        """
        of_key = {Key(p.row, p.draw, n): p for _, p in prompts for n in [*range(samples), *([GREEDY] if greedy else [])]}
        of_sample = {key: replace(sampling, temperature=0.0) if key.sample == GREEDY else sampling for key in of_key}
        source, episodes = self._start(of_key, of_sample)
        finished: dict[Key, Sample] = {}
        tokens = 0
        heartbeat.advance(0, len(of_key), "samples")
        while source.pending:
            if self.ranks.any_tp_rank(self.stopping.requested):
                source.abort()
                return None
            for sample in source.advance():
                finished[sample.key] = self._submit(sample, of_key[sample.key], samples + greedy, episodes.get(sample.key))
                tokens += int(sample.mask.sum())
                heartbeat.advance(len(finished), len(of_key), "samples", tokens)
        rewards = self.ranks.broadcast_tp(self.rewards.collect(list(of_key)) if self.ranks.is_tp_leader else {})
        turn_weight = self.episodes.turn_weight if self.episodes else 0.0
        scored = {key: join_reward(finished[key], rewards[key], episodes.get(key), turn_weight) for key in of_key}
        return [build_group(index, prompt, samples, scored) for index, prompt in prompts]

    def _start(self, of_key: Mapping[Key, PromptRequest], of_sample: Mapping[Key, Sampling]) -> tuple[SampleStream, Mapping[Key, Episode]]:
        """What samples all keys, and the episodes that end in it, of an environment."""
        if self.episodes is None:
            for key, prompt in of_key.items():
                self.engine.add(Request(key, tuple(prompt.tokens), of_sample[key], seeds.sample_seed(self.seed, key)))
            return self.engine, {}
        requests = [EpisodeRequest(key, build_reward_item(prompt), of_sample[key]) for key, prompt in of_key.items()]
        rollout = EpisodeRollout(self.episodes, self.engine, self.ranks, self.seed, requests)
        return rollout, rollout.ended

    def _submit(self, sample: Sample, prompt: PromptRequest, group_size: int, episode: Episode | None) -> Sample:
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
            self.rewards.submit(sample.key, item, group=sample.key.of_prompt, group_size=group_size)
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
    components = {name: outcome.value for name, outcome in reward.components.items()}
    if episode is None:
        return ScoredSample(sample, reward.reward, components, dict(reward.metrics))
    total = None if isinstance(episode.end, EpisodeFailure) else reward.reward
    turns = tuple((place, turn_weight * own) for place, own in episode.turn_rewards) if turn_weight and total is not None else ()
    return ScoredSample(sample, total, components, {**reward.metrics, TOOL_CALLS: float(episode.tool_calls)}, turns)
