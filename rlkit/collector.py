"""What happens between a prompt and a scored group.

Requests go into the engine together; each finished sample goes to the reward workers while others still generate. Results are taken up
in the order of the prompts, never in that of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlkit import seeds
from rlkit.engines.base import RolloutEngine
from rlkit.ranks import Ranks
from rlkit.rewarding.judge import Judge
from rlkit.stopping import Stopping
from rlkit.types import Group, Key, Request, Sample, Sampling, Scored

GREEDY = -1  # in a key, the sample number of the greedy completion


class Columned(Protocol):
    """A prompt of the data."""

    prompt: Any  # messages or text
    answer: str | None
    columns: Mapping[str, Any]


class Ask(Columned, Protocol):
    """A prompt of the data, ready to be asked."""

    row: int
    draw: int
    tokens: tuple[int, ...]


class Prompts(Protocol):
    """Where prompts come from; the same on every rank."""

    def take(self, n: int) -> Sequence[Ask]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Text(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass
class Desk:
    """Where a completion is asked for, sampled and judged."""

    engine: RolloutEngine
    judge: Judge
    text: Text
    stopping: Stopping
    seed: int

    def groups(self, prompts: Sequence[tuple[int, Ask]], samples: int, sampling: Sampling, greedy: bool = False) -> list[Group] | None:
        """The scored groups of numbered prompts, in their order; None where the run was asked to stop meanwhile.

        greedy: each group gets the most likely completion too.
        """
        asked: dict[Key, Ask] = {}
        for _, prompt in prompts:
            for n in [*range(samples), *([GREEDY] if greedy else [])]:
                key = Key(prompt.row, prompt.draw, n)
                drawn = replace(sampling, temperature=0.0) if n == GREEDY else sampling
                self.engine.add(Request(key, tuple(prompt.tokens), drawn, seeds.of_sample(self.seed, key)))
                asked[key] = prompt
        finished: dict[Key, Sample] = {}
        while self.engine.pending:
            if self.stopping.requested:
                self.engine.abort()
                return None
            for sample in self.engine.advance():
                finished[sample.key] = self._judged_later(sample, asked[sample.key], samples + greedy)
        verdicts = self.judge.collect(list(asked))
        scored = {key: score(finished[key], verdicts[key]) for key in asked}
        return [
            Group(number, tuple(scored[Key(p.row, p.draw, n)] for n in range(samples)), scored.get(Key(p.row, p.draw, GREEDY)))
            for number, p in prompts
        ]

    def _judged_later(self, sample: Sample, prompt: Ask, group_size: int) -> Sample:
        sample = replace(sample, text=self.text.decode(sample.tokens.tolist()))
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


def score(sample: Sample, verdict: Any) -> Scored:
    parts = {name: outcome.value for name, outcome in verdict.parts.items()}
    return Scored(sample, verdict.reward, parts, dict(verdict.metrics))


@dataclass
class Collector:
    """The prompts of a step, dealt to the ranks, asked, sampled and judged."""

    desk: Desk
    prompts: Prompts
    ranks: Ranks
    prompts_per_step: int
    samples_per_prompt: int
    sampling: Sampling
    greedy: bool  # whether each prompt gets a greedy completion too

    def take(self) -> list[Group] | None:
        """This rank's scored groups of the next step; None where this rank was asked to stop."""
        numbered = list(enumerate(self.prompts.take(self.prompts_per_step)))
        return self.desk.groups(numbered[self.ranks.rank :: self.ranks.world], self.samples_per_prompt, self.sampling, self.greedy)
