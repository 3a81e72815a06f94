"""An environment and an engine in this process, for what real ones cannot be made to do at a given moment: answer late, die, stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlkit.data.renderer import Renderer
from rlkit.data.tool_calls import TurnReader
from rlkit.data.turn_bridge import TurnBridge
from rlkit.engines.base import RolloutEngine, make_sample
from rlkit.environments.base import Answer, EpisodeEnd, Message, Observation, Opening
from rlkit.rollout.episodes import EpisodeRequest, EpisodeRollout, EpisodeSettings
from rlkit.types import Key, Request, Sample, Sampling, Stop

PROMPT = [{"role": "user", "content": "What is 47 + 38?"}]


def say(*texts: str) -> tuple[Message, ...]:
    return tuple({"role": "user", "content": text} for text in texts)


@dataclass
class TwinClient:
    """Answers by functions; in any order and late where `late` draws it."""

    act_: Callable[[Key, int, Message], Answer] = lambda key, turn, message: Observation(say("again"), turn == 2)
    open_: Callable[[Key, Mapping[str, Any]], Answer] = lambda key, row: Opening(tuple(PROMPT), None)
    end_: Callable[[Key], Answer] = lambda key: EpisodeEnd(float(key.sample), {"seen": 1.0})
    late: random.Random | None = None
    turns: dict[Key, int] = field(default_factory=dict)
    seeds: dict[Key, int] = field(default_factory=dict)
    seen: list[tuple[str, Key]] = field(default_factory=list)  # the calls
    most: int = 0  # sessions that were open at once
    aborted: bool = False
    _answers: list[tuple[Key, Answer]] = field(default_factory=list)

    def open(self, key: Key, row: Mapping[str, Any], seed: int) -> None:
        self.seen.append(("open", key))
        self.turns[key], self.seeds[key] = 0, seed
        self.most = max(self.most, len(self.turns))
        self._answers.append((key, self.open_(key, row)))

    def act(self, key: Key, message: Message) -> None:
        self.seen.append(("act", key))
        self.turns[key] += 1
        self._answers.append((key, self.act_(key, self.turns[key], message)))

    def finish(self, key: Key) -> None:
        self.seen.append(("finish", key))
        del self.turns[key]
        self._answers.append((key, self.end_(key)))

    def collect(self, timeout: float) -> list[tuple[Key, Answer]]:
        """All answers, or some of them."""
        kept = [answer for answer in self._answers if self.late and self.late.random() < 0.6]
        found = [answer for answer in self._answers if answer not in kept]
        if self.late:
            self.late.shuffle(found)
        self._answers = kept
        return found

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None: ...


@dataclass
class ScriptedEngine:
    """Writes what the script gives for a turn, and an end token where it fits. A log-prob is -0.5."""

    renderer: Renderer
    script: Callable[[Key], str] = lambda key: f"{key.prompt}.{key.sample} turn {key.turn}"
    version: int | None = 7
    requests: list[Request] = field(default_factory=list)
    batches: list[list[Key]] = field(default_factory=list)
    sampled: dict[Key, list[int]] = field(default_factory=dict)
    aborted: bool = False
    _waiting: list[Request] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        self.requests.append(request)
        self._waiting.append(request)

    def advance(self) -> list[Sample]:
        batch, self._waiting = self._waiting, []
        self.batches.append([request.key for request in batch])
        return [self._write(request) for request in batch]

    def abort(self) -> list[Sample]:
        self.aborted, self._waiting = True, []
        return []

    def _write(self, request: Request) -> Sample:
        whole = [*self.renderer.tokenize(self.script(request.key)), min(self.renderer.eos_ids)]
        ids = whole[: request.sampling.max_tokens]
        self.sampled.setdefault(request.key._replace(turn=0), []).extend(ids)
        return make_sample(request, ids, [-0.5] * len(ids), Stop.EOS if ids == whole else Stop.LENGTH, self.version)


class WatchedEngine:
    """A real engine; keeps what it was asked and what it sampled."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine, self.asked, self.sampled = engine, list[Request](), list[Sample]()

    @property
    def pending(self) -> int:
        return self._engine.pending

    def add(self, request: Request) -> None:
        self.asked.append(request)
        self._engine.add(request)

    def advance(self) -> list[Sample]:
        found = self._engine.advance()
        self.sampled += found
        return found


def check_turns(samples: Sequence[Sample], sampled: Sequence[Sample]) -> None:
    """Every request began with the prompt and all tokens so far, and what counts in an episode are the tokens that were sampled."""
    whole = {s.key: (*s.prompt, *s.tokens.tolist()) for s in samples}
    counted = dict.fromkeys(whole, 0)
    for turn in sampled:
        key = turn.key._replace(turn=0)
        assert whole[key][: len(turn.prompt) + len(turn.tokens)] == (*turn.prompt, *turn.tokens.tolist())
        counted[key] += len(turn.tokens)
    assert {s.key: int(s.mask.sum()) for s in samples} == counted


def compute_dense(model: Any, sample: Sample) -> torch.Tensor:
    """Log-probs [L] of all tokens after the prompt, by transformers alone."""
    row = torch.tensor([*sample.prompt, *sample.tokens.tolist()])
    logits = model(input_ids=row[None], use_cache=False).logits[0, len(sample.prompt) - 1 : -1]
    chosen: torch.Tensor = torch.log_softmax(logits.float(), -1).gather(-1, sample.tokens[:, None])[:, 0]
    return chosen


class Alone:
    """The only rank."""

    def broadcast_tp(self, item: Any) -> Any:
        return item

    def any_tp_rank(self, flag: bool) -> bool:
        return flag

    is_tp_leader = True


def build_settings(renderer: Renderer, client: Any, **changes: Any) -> EpisodeSettings:
    own = {"max_prompt_tokens": 200, "max_turns": 8, **changes}
    return EpisodeSettings(client, renderer, TurnBridge(renderer, 64), TurnReader(renderer, "hermes"), **own)


def ask(prompts: int, samples: int, max_tokens: int = 400) -> list[EpisodeRequest]:
    keys = [Key(prompt, 0, sample) for prompt in range(prompts) for sample in range(samples)]
    return [EpisodeRequest(key, {"prompt": PROMPT}, Sampling(max_tokens=max_tokens)) for key in keys]


def run_episodes(
    renderer: Renderer, client: Any, requests: Sequence[EpisodeRequest], engine: Any = None, ranks: Any = None, **changes: Any
) -> tuple[EpisodeRollout, dict[Key, Sample], Any]:
    """All of them to their end: the rollout, its samples, the engine."""
    engine = engine or ScriptedEngine(renderer)
    rollout = EpisodeRollout(build_settings(renderer, client, **changes), engine, ranks or Alone(), 3, requests)  # type: ignore[arg-type]
    samples: dict[Key, Sample] = {}
    while rollout.pending:
        samples |= {sample.key: sample for sample in rollout.advance()}
    return rollout, samples, engine
