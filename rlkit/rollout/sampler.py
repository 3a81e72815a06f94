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
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import SampleReward
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

    def sample_groups(
        self, prompts: Sequence[tuple[int, PromptRequest]], samples: int, sampling: Sampling, greedy: bool = False
    ) -> list[Group] | None:
        """The scored groups of (index, prompt), in their order, the same on all ranks of a tensor-parallel group; None where a stop was
        requested.

        greedy: each group gets the most likely completion too.
        """
        of_key: dict[Key, PromptRequest] = {}
        for _, prompt in prompts:
            for n in [*range(samples), *([GREEDY] if greedy else [])]:
                key = Key(prompt.row, prompt.draw, n)
                own = replace(sampling, temperature=0.0) if n == GREEDY else sampling
                self.engine.add(Request(key, tuple(prompt.tokens), own, seeds.sample_seed(self.seed, key)))
                of_key[key] = prompt
        finished: dict[Key, Sample] = {}
        tokens = 0
        heartbeat.advance(0, len(of_key), "samples")
        while self.engine.pending:
            if self.ranks.any_tp_rank(self.stopping.requested):
                self.engine.abort()
                return None
            for sample in self.engine.advance():
                finished[sample.key] = self._submit(sample, of_key[sample.key], samples + greedy)
                tokens += len(sample.tokens)
                heartbeat.advance(len(finished), len(of_key), "samples", tokens)
        rewards = self.ranks.broadcast_tp(self.rewards.collect(list(of_key)) if self.ranks.is_tp_leader else {})
        scored = {key: join_reward(finished[key], rewards[key]) for key in of_key}
        return [
            Group(index, tuple(scored[Key(p.row, p.draw, n)] for n in range(samples)), scored.get(Key(p.row, p.draw, GREEDY)), p.answer)
            for index, p in prompts
        ]

    def _submit(self, sample: Sample, prompt: PromptRequest, group_size: int) -> Sample:
        """The sample with its text, submitted to the rewards by the first rank of a tensor-parallel group."""
        tokens = sample.tokens.tolist()
        sample = replace(sample, text=self.decoder.decode(tokens))
        if self.ranks.is_tp_leader:
            item = {
                **build_reward_item(prompt),
                "completion": sample.text,
                "completion_length": len(tokens),
                "stop": str(sample.stop),
                **({"completion_ids": tokens} if self.rewards.asks_for("completion_ids") else {}),
                **({"prompt_text": self.decoder.decode(prompt.tokens, special=True)} if self.rewards.asks_for("prompt_text") else {}),
            }
            self.rewards.submit(sample.key, item, group=sample.key.of_prompt, group_size=group_size)
        return sample


def build_reward_item(prompt: RewardInput) -> dict[str, Any]:
    """What a reward gets beside the completion; a chat is a list of messages, as functions written elsewhere expect it."""
    messages = prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt)
    return {**prompt.columns, **({} if prompt.answer is None else {"answer": prompt.answer}), "prompt": messages}


def join_reward(sample: Sample, reward: SampleReward) -> ScoredSample:
    """A sample with its reward."""
    components = {name: outcome.value for name, outcome in reward.components.items()}
    return ScoredSample(sample, reward.reward, components, dict(reward.metrics))
