"""Samples episodes: the policy's turns and what an environment answers to them, each episode as one sample.

    open -> prompt -> turn of the policy (mask True) -> act -> observation (mask False, no log-prob) -> turn -> ... -> finish -> reward

The request of a turn begins with the prompt and all tokens so far. While one episode waits for its environment the others are sampled; this
process waits for answers only where the engine has nothing to do. With `lockstep` the next turns begin once all answers are there, so that
which requests share a batch does not depend on how long an environment takes.

An episode whose session is lost has no reward. Where another episode ended the worker of its session it begins anew instead, with the same
seeds, so that it does not matter which episodes share a worker.

An episode ends where the environment is done or adds nothing, after max_turns, where a turn was cut at the limit, where the next
observation does not fit within max_tokens, and where the chat template has no way to go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from typing import Any, Protocol

import torch

from rlkit import seeds
from rlkit.engines.base import RolloutEngine
from rlkit.environments.base import Answer, EnvironmentClient, EpisodeEnd, EpisodeFailure, Message, Observation, Opening
from rlkit.errors import UserError
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Request, Sample, Sampling, Stop

POLL_SECONDS = 1.0  # between two looks at a stop request, while all episodes wait
BEGINNINGS = 3  # of an episode, at most
TOGETHER_SECONDS = 0.005  # answers that follow each other so soon go into the engine together
TOOL_CALLS = "environment/tool_calls"  # a metric, and its name in what is known of a sample beside its reward
Tools = Sequence[Mapping[str, Any]]


class WrittenBy(StrEnum):
    """Whose tokens they are."""

    POLICY = "policy"
    ENVIRONMENT = "environment"


class PromptEncoder(Protocol):
    def encode_prompt(self, prompt: Sequence[Message], tools: Tools) -> list[int]: ...


class Bridge(Protocol):
    def encode(self, last: int, replies: Sequence[Message], tools: Tools) -> list[int] | None: ...


class Reader(Protocol):
    def read(self, ids: Sequence[int], before: Sequence[int], tools: Tools) -> Message: ...


@dataclass(frozen=True)
class EpisodeSettings:
    """How the episodes of a run are sampled. client: None on a rank that does not lead its tensor-parallel group."""

    client: EnvironmentClient | None
    encoder: PromptEncoder
    bridge: Bridge
    reader: Reader
    max_prompt_tokens: int
    max_turns: int  # of the policy
    lockstep: bool = False
    sessions: int | None = None  # that are open at the same time; None: all
    turn_weight: float = 0.0  # of the environment's reward where the reward is a sum, so that parts of it belong to turns


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode to sample; row: what the environment opens with."""

    key: Key
    row: Mapping[str, Any]
    sampling: Sampling  # max_tokens bounds the episode, observations included


@dataclass
class Episode:
    """An episode so far. tokens, mask, logprobs and versions are those after the prompt."""

    asked: EpisodeRequest
    prompt: tuple[int, ...] = ()  # empty: it has not opened
    tools: Tools = ()
    conversation: list[Message] = field(default_factory=list)
    turns: int = 0  # of the policy
    turn_rewards: list[tuple[int, float]] = field(default_factory=list)  # of the environment, by the place of a turn's last token
    tool_calls: int = 0
    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    stop: Stop = Stop.EOS
    is_sampled: bool = False  # whether the engine has its next turn
    end: EpisodeEnd | EpisodeFailure | None = None
    beginnings: int = 1

    @property
    def turn_key(self) -> Key:
        """Of its next turn."""
        return self.asked.key._replace(turn=self.turns)

    @property
    def room(self) -> int:
        """Tokens that are left."""
        return self.asked.sampling.max_tokens - len(self.tokens)

    def add_tokens(self, tokens: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], *, written: bool) -> None:
        """written: by the policy."""
        self.tokens += tokens
        self.mask += [written] * len(tokens)
        self.logprobs += logprobs
        self.versions += versions

    def build_sample(self) -> Sample:
        return Sample(
            key=self.asked.key,
            prompt=self.prompt,
            tokens=torch.tensor(self.tokens, dtype=torch.int64),
            mask=torch.tensor(self.mask, dtype=torch.bool),
            rollout_logprobs=torch.tensor(self.logprobs, dtype=torch.float32),
            versions=torch.tensor(self.versions, dtype=torch.int32),
            stop=self.stop,
            text="",
        )


class EpisodeRollout:
    """The episodes of one rollout, as a stream of samples; `ended` keeps all of them by key."""

    def __init__(
        self, settings: EpisodeSettings, engine: RolloutEngine, ranks: Ranks, seed: int, requests: Sequence[EpisodeRequest]
    ) -> None:
        self._settings, self._engine, self._ranks, self._seed = settings, engine, ranks, seed
        self._queue = deque(requests)
        self._open: dict[Key, Episode] = {}
        self._waiting: set[Key] = set()  # for an answer of the environment
        self._next: list[Request] = []  # turns that are ready to be sampled
        self.ended: dict[Key, Episode] = {}

    @property
    def pending(self) -> int:
        return len(self._queue) + len(self._open)

    def advance(self) -> list[Sample]:
        """Does a short piece of work, or waits for the environment; returns the episodes that ended. The same on all ranks of a group."""
        before = len(self.ended)
        heartbeat.beat()
        self._open_sessions()
        self._submit_turns()
        if self._engine.pending:
            for sample in self._engine.advance():
                self._take_turn(self._open[sample.key._replace(turn=0)], sample)
        for key, answer in self._collect():
            if key in self._open:
                self._take_answer(self._open[key], answer)
        return [episode.build_sample() for episode in list(self.ended.values())[before:]]

    def abort(self) -> None:
        """Ends all episodes, here and in the environment."""
        self._engine.abort()
        if self._settings.client:
            self._settings.client.abort()

    def _open_sessions(self) -> None:
        limit = self._settings.sessions
        while self._queue and (limit is None or len(self._open) < limit):
            self._open_session(Episode(self._queue.popleft()))

    def _open_session(self, episode: Episode) -> None:
        asked = episode.asked
        self._open[asked.key] = episode
        self._wait_for(episode)
        if self._settings.client:  # a seed of the prompt, not of the sample: the samples of a group begin alike
            seed = seeds.derive_seed("environment", self._seed, *asked.key.of_prompt)
            self._settings.client.open(asked.key, asked.row, seed)

    def _submit_turns(self) -> None:
        if self._settings.lockstep and (self._waiting or self._engine.pending):
            return
        for request in sorted(self._next, key=lambda request: request.key) if self._settings.lockstep else self._next:
            self._engine.add(request)
        self._next = []

    def _collect(self) -> Sequence[tuple[Key, Answer]]:
        """What the environment has answered, on the leader of the group, and from there on all its ranks."""
        answers: list[tuple[Key, Answer]] = []
        if self._settings.client and self._waiting:
            idle = not self._engine.pending and not self._next
            answers = self._settings.client.collect(POLL_SECONDS if idle else 0.0)
            while idle and answers and (more := self._settings.client.collect(TOGETHER_SECONDS)):
                answers += more
        return self._ranks.broadcast_tp(answers)

    def _take_turn(self, episode: Episode, sample: Sample) -> None:
        """A turn of the policy, which the environment gets unless it was cut at the limit."""
        ids, before = sample.tokens.tolist(), sample.prompt
        episode.is_sampled = False
        if isinstance(episode.end, EpisodeFailure) and self._begin_anew(episode, episode.end):
            return
        episode.add_tokens(ids, sample.rollout_logprobs.tolist(), sample.versions.tolist(), written=True)
        cut = sample.stop is not Stop.EOS
        message = self._settings.reader.read(ids, before, () if cut else episode.tools)
        episode.conversation.append(message)
        episode.turns += 1
        episode.stop = sample.stop
        if episode.end is not None:  # its session was lost meanwhile
            self._close(episode, episode.end)
        elif cut:
            self._finish(episode)
        else:
            episode.tool_calls += len(message.get("tool_calls", ()))
            self._wait_for(episode)
            if self._settings.client:
                self._settings.client.act(episode.asked.key, message)

    def _take_answer(self, episode: Episode, answer: Answer) -> None:
        self._waiting.discard(episode.asked.key)
        match answer:
            case Opening():
                self._begin(episode, answer)
            case Observation():
                self._observe(episode, answer)
            case EpisodeEnd():
                self._close(episode, answer if episode.end is None else episode.end)
            case EpisodeFailure() if episode.is_sampled:
                episode.end = answer
            case EpisodeFailure():
                if not self._begin_anew(episode, answer):
                    self._close(episode, answer)

    def _begin_anew(self, episode: Episode, failure: EpisodeFailure) -> bool:
        """Whether the episode, whose session is lost, has begun again."""
        if failure.own or episode.beginnings >= BEGINNINGS:
            return False
        self._open_session(Episode(episode.asked, beginnings=episode.beginnings + 1))
        return True

    def _begin(self, episode: Episode, opening: Opening) -> None:
        """The first turn. A prompt that cannot be used is a failure of the environment, which has the last word on it."""
        episode.conversation, episode.tools = list(opening.messages), opening.tools or ()
        prompt, limit, problem = list[int](), self._settings.max_prompt_tokens, ""
        try:
            prompt = self._settings.encoder.encode_prompt(opening.messages, episode.tools)
            if len(prompt) > limit:
                problem = f"its prompt has {len(prompt)} tokens with its tools, more than max_prompt_tokens={limit}"
        except UserError as error:
            problem = str(error)
        if problem:
            episode.end = EpisodeFailure(problem)
            self._finish(episode)
            return
        episode.prompt = tuple(prompt)
        self._ask(episode)

    def _observe(self, episode: Episode, observation: Observation) -> None:
        """The next turn, or the end where the observation cannot be followed by one."""
        if observation.reward is not None:
            episode.turn_rewards.append((len(episode.tokens) - 1, observation.reward))
        replies = observation.messages
        if observation.done or not replies or episode.turns >= self._settings.max_turns:
            self._finish(episode)
            return
        tokens = self._settings.bridge.encode(episode.tokens[-1], replies, episode.tools)
        if tokens is None or len(tokens) >= episode.room:
            episode.stop = episode.stop if tokens is None else Stop.LENGTH
            self._finish(episode)
            return
        episode.add_tokens(tokens, [0.0] * len(tokens), [episode.versions[-1]] * len(tokens), written=False)
        episode.conversation += replies
        self._ask(episode)

    def _ask(self, episode: Episode) -> None:
        key = episode.turn_key
        sampling = replace(episode.asked.sampling, max_tokens=episode.room)
        self._next.append(Request(key, (*episode.prompt, *episode.tokens), sampling, seeds.sample_seed(self._seed, key)))
        episode.is_sampled = True

    def _wait_for(self, episode: Episode) -> None:
        self._waiting.add(episode.asked.key)

    def _finish(self, episode: Episode) -> None:
        """Asks the environment for the end of an episode."""
        self._wait_for(episode)
        if self._settings.client:
            self._settings.client.finish(episode.asked.key)

    def _close(self, episode: Episode, end: EpisodeEnd | EpisodeFailure) -> None:
        episode.end = end
        self.ended[episode.asked.key] = self._open.pop(episode.asked.key)


def split_turns(sample: Sample) -> list[tuple[WrittenBy, tuple[int, ...]]]:
    """The tokens of an episode, turn by turn and with the observations between them; who wrote them."""
    pairs = zip(sample.mask.tolist(), sample.tokens.tolist(), strict=True)
    return [
        (WrittenBy.POLICY if written else WrittenBy.ENVIRONMENT, tuple(token for _, token in run))
        for written, run in groupby(pairs, key=lambda pair: pair[0])
    ]


def share_prompt(samples: Sequence[Sample], tokens: tuple[int, ...]) -> list[Sample]:
    """The samples of a prompt, those that did not open with the prompt of the others; tokens: of the row, where none opened.

    Raises UserError where they begin differently: a group is compared, so that all of its samples must have the same prompt.
    """
    prompts = {sample.prompt for sample in samples if sample.prompt}
    if len(prompts) > 1:
        row, draw = samples[0].key.of_prompt
        raise UserError(
            f"environment: the episodes of row {row} (draw {draw}) opened with {len(prompts)} different prompts, although all got the same "
            "seed and row; let `reset` choose by its argument seed, or show what differs after the first turn"
        )
    shared = next(iter(prompts), tokens)
    return [sample if sample.prompt else replace(sample, prompt=shared) for sample in samples]
