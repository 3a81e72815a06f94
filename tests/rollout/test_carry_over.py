"""Groups that a step begins and a later one finishes, on an engine of known lengths: none is lost, none is preferred for its length."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.engines.base import make_sample
from rlkit.rewarding.outcome import SampleReward
from rlkit.rollout.collector import Collector
from rlkit.rollout.open_groups import TOKENS_BETWEEN_COUNTS
from rlkit.rollout.sampler import Sampler
from rlkit.seeds import sample_seed
from rlkit.types import Group, Key, Request, Sample, Sampling, Stop
from rlkit.updates.collate import collate
from tests.algorithms.tiny import Ranks, together

LONGEST = 512


@cache
def log_normal(key: Key) -> int:
    """Mean 128; half of the variance of its logarithm is the prompt's."""
    prompt, own = random.Random(f"{key.of_prompt}").gauss(0, 1), random.Random(f"{key}").gauss(0, 1)
    return max(1, min(LONGEST, round(135.0 * math.exp(0.8 * (prompt + own) / math.sqrt(2) - 0.32))))


def one_long(key: Key) -> int:
    """Prompt 0 has one sample of 100 tokens; all others have 4."""
    return 100 if key == Key(0, 0, 1) else 4


@dataclass
class Lengths:
    """An engine that gives each request a token an advance, up to the length of its key. What a token is depends on seed and place."""

    length: Callable[[Key], int]
    version: int = 0
    tokens_per_advance: int = 1
    asked: list[Request] = field(default_factory=list)
    running: dict[Key, tuple[Request, int]] = field(default_factory=dict)  # and the step before its first
    ends: defaultdict[int, list[Key]] = field(default_factory=lambda: defaultdict(list))  # by the step
    steps: int = 0
    sampled: int = 0  # tokens

    @property
    def pending(self) -> int:
        return len(self.running)

    def add(self, request: Request) -> None:
        had = LONGEST - request.tokens_left
        assert request.key not in self.running and len(request.context) == len(request.tokens) + had
        assert request.seed == sample_seed(0, request.key, had)
        self.asked.append(request)
        self.running[request.key] = request, self.steps
        self.ends[self.steps + self.length(request.key) - had].append(request.key)

    def advance(self) -> list[Sample]:
        self.steps += 1
        return [self.build(*self.running.pop(key), Stop.EOS) for key in self.ends.pop(self.steps, ())]

    def abort(self) -> list[Sample]:
        held, self.running = self.running, {}
        self.ends.clear()
        return [self.build(*row, Stop.ABORTED) for row in held.values()]

    def build(self, request: Request, start: int, stop: Stop) -> Sample:
        count = self.steps - start
        self.sampled += count
        tokens = torch.randint(1000, (count,), generator=torch.Generator().manual_seed(request.seed))
        return make_sample(request, tokens.tolist(), (-0.001 * tokens).tolist(), stop, self.version)


class Rewards:
    """1 for an odd sample and 0 for an even one, where the group has a signal: by the pattern, cycled over prompts."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.held = pattern, dict[Key, int]()

    def asks_for(self, name: str) -> bool:
        return False

    def submit(self, key: Key, item: Any, group: Any, group_size: int, only: Any = None) -> None:
        assert key not in self.held
        self.held[key] = key.sample % 2 if self.pattern[key.prompt % len(self.pattern)] == "1" else 1

    def collect(self, keys: Sequence[Key]) -> dict[Key, SampleReward]:
        return {key: SampleReward(float(reward), {}, {}) for key in keys for reward in [self.held.pop(key)]}


@dataclass
class Rows:
    """Prompts 0, 1, 2, ... without end."""

    next: int = 0

    def take(self, n: int) -> list[Any]:
        self.next += n
        return [self.get(row, 0) for row in range(self.next - n, self.next)]

    def get(self, row: int, draw: int) -> Any:
        return SimpleNamespace(row=row, draw=draw, tokens=(row, 7), prompt="", answer=None, columns={})

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class TensorParallel(Ranks):
    """Two ranks that share one engine."""

    @property
    def is_tp_leader(self) -> bool:  # type: ignore[override]
        return self.rank == 0

    def shard(self, things: list[Any]) -> list[Any]:
        return things

    def broadcast_tp(self, thing: Any) -> Any:
        return self.gather(thing)[0]

    def any_tp_rank(self, flag: bool) -> bool:  # type: ignore[override]
        return self.any_rank(flag)


@dataclass(frozen=True)
class Case:
    size: int = 4
    over_ask: float = 1.5
    max_lag: int = 2
    length: Callable[[Key], int] = log_normal
    pattern: str = "1"
    max_refills: int | None = None
    samples: int = 4

    def build(self, ranks: Any) -> Collector:
        engine: Any = Lengths(self.length)
        decoder: Any = SimpleNamespace(decode=lambda ids, special=False: " ".join(map(str, ids)))
        rewards: Any = Rewards(self.pattern)
        sampler = Sampler(engine, rewards, decoder, SimpleNamespace(requested=False), 0, ranks)  # type: ignore[arg-type]
        rows: Any = Rows()
        refills, lag = self.max_refills, self.max_lag
        sampling = Sampling(max_tokens=LONGEST)
        return Collector(sampler, rows, ranks, self.size, self.samples, sampling, False, refills, None, False, self.over_ask, lag)


@dataclass
class Step:
    """What all ranks saw of a step."""

    learned: list[Group]
    left_out: list[Group]
    lag: int
    asked: list[list[int]]  # by each rank, the rows in the order in which its engine got them
    steps: list[int]  # of each engine, up to here
    sampled: int  # tokens by all engines, up to here
    state: dict[str, Any]  # after it


def run_steps(made: Collector, ranks: Any, count: int, first: int = 0) -> Iterator[Step]:
    engine: Any = made.sampler.engine
    for number in range(first, first + count):
        engine.version, engine.asked = number, []
        taken = made.take()
        assert taken is not None and not engine.pending
        groups, batch = collate(taken.groups, ranks, 1, number, made.max_lag)
        left_out = [g for part in ranks.gather(taken.left_out) for g in part]
        lag = ranks.all_reduce_max(int(batch.lag.max()) if batch.samples else 0)
        asked = ranks.gather(list(dict.fromkeys(request.key.prompt for request in engine.asked)))
        sampled = sum(ranks.gather(engine.sampled))
        yield Step(groups, left_out, lag, asked, ranks.gather(engine.steps), sampled, json.loads(json.dumps(made.state())))


def run_case(case: Case, count: int, world: int = 1, cut: int | None = None) -> list[Step]:
    """cut: the step after which the run is killed and resumed."""

    def work(ranks: Any) -> list[Step]:
        made = case.build(ranks)
        if cut is None:
            return list(run_steps(made, ranks, count))
        before = list(run_steps(made, ranks, cut))
        resumed = case.build(ranks)
        resumed.load(before[-1].state)
        return [*before, *run_steps(resumed, ranks, count - cut, cut)]

    return together(world, work)[0]


def rows_of(groups: Sequence[Group]) -> list[int]:
    return [g.samples[0].sample.key.prompt for g in groups]


def carried(step: Step) -> list[int]:
    """The rows that wait, in the order of their places."""
    waiting = [(g["index"], g["samples"][0]["sample"]["key"][0]) for g in step.state["surplus"]]
    waiting += [(g["index"], g["row"]) for g in step.state["open"]]
    assert [index for index, _ in sorted(waiting)] == list(range(len(waiting)))
    return [row for _, row in sorted(waiting)]


def bits(groups: Sequence[Group]) -> list[Any]:
    samples = [s for g in groups for s in g.samples]
    return [(s.reward, *(v.tolist() if isinstance(v, torch.Tensor) else v for v in vars(s.sample).values())) for s in samples]


CASES = {
    "plain": Case(),
    "wide": Case(over_ask=2.0, max_lag=1),
    "long": Case(size=3, over_ask=1.25, max_lag=3),
    "dynamic": Case(pattern="11010", max_refills=3),
    "dynamic, wide": Case(size=3, over_ask=2.0, max_lag=1, pattern="10001", max_refills=4),
}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_prompt_is_learned_once_left_out_or_still_carried(name: str, world: int) -> None:
    case, seen, tokens = CASES[name], list[int](), 0
    waiting: list[int] = []
    steps = run_case(case, 12, world)
    for step in steps:
        for part in step.asked:  # what was carried goes first, the oldest before the others
            known = [row for row in waiting if row in part]
            assert part[: len(known)] == known or case.max_refills  # which has rounds, each with what the one before left
        assert len(step.learned) == case.size or case.max_refills is not None
        assert step.lag <= case.max_lag
        for sample in (s.sample for g in [*step.learned, *step.left_out] for s in g.samples):
            assert len(sample.tokens) == case.length(sample.key) == len(sample.text.split()) and sample.stop is Stop.EOS
            assert sample.versions.tolist() == sorted(sample.versions.tolist())
            tokens += len(sample.tokens)
        seen += rows_of(step.learned) + rows_of(step.left_out)
        waiting = carried(step)
        assert len(waiting) <= case.size  # so that all of them can be learned from in the next step
        assert sorted(seen + waiting) == list(range(step.state["prompts"]["next"]))
        held = [s for g in step.state["open"] for s in g["samples"]] + [s["sample"] for g in step.state["surplus"] for s in g["samples"]]
        assert step.sampled == tokens + sum(len(s["tokens"]) for s in held)  # no token was sampled in vain
    assert max(step.lag for step in steps) >= 1 and any(step.state["open"] for step in steps)
    assert (case.max_refills is None) == (not any(step.left_out for step in steps))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ["plain", "dynamic"])
def test_a_resumed_run_goes_on_with_the_begun_samples_to_the_bit(name: str, world: int) -> None:
    whole = run_case(CASES[name], 5, world)
    for cut in range(1, 5):
        again = run_case(CASES[name], 5, world, cut)
        for ours, theirs in zip(again, whole, strict=True):
            assert bits(ours.learned) == bits(theirs.learned) and ours.state == theirs.state and ours.asked == theirs.asked


def test_two_ranks_that_share_an_engine_are_as_one() -> None:
    def work(ranks: Any) -> list[Step]:
        shared = TensorParallel(ranks.rank, ranks._slots, ranks._barrier)
        return list(run_steps(CASES["plain"].build(shared), shared, 4))

    alone = run_case(CASES["plain"], 4)
    for steps in together(2, work):
        for ours, theirs in zip(steps, alone, strict=True):
            assert (bits(ours.learned), ours.state) == (bits(theirs.learned), theirs.state) and ours.asked == theirs.asked * 2


def test_lengths_that_are_learned_from_are_those_of_the_data() -> None:
    """200 steps; with what is carried exactly, without it within 1 %."""
    case, learned = Case(size=16), list[int]()

    def work(ranks: Any) -> tuple[int, int, int]:
        made = case.build(ranks)
        engine: Any = made.sampler.engine
        for step in range(200):
            engine.version = step
            taken = made.take()
            assert taken is not None
            learned.extend(len(s.sample.tokens) for g in taken.groups for s in g.samples)
        waiting = {g.prompt.row for g in made.open} | set(rows_of(made.surplus))
        return engine.steps, made.state()["prompts"]["next"], sum(case.length(Key(row, 0, n)) for row in waiting for n in range(4))

    [(steps, asked, carried)] = together(1, work)
    lengths = [[case.length(Key(row, 0, n)) for n in range(4)] for row in range(asked)]
    assert sum(learned) + carried == sum(map(sum, lengths)) and len(learned) == 200 * 16 * 4
    assert sum(learned) / len(learned) == pytest.approx(sum(map(sum, lengths)) / (4 * asked), rel=0.01)
    whole_steps = sum(max(map(max, lengths[start : start + 16])) for start in range(0, 3200, 16))
    assert steps < 0.7 * whole_steps  # decode steps of the engine


def test_a_group_is_waited_for_at_the_limit_and_only_there() -> None:
    """Two of three groups are enough. The third has a sample of 100 tokens: 8 of them in step 0, 8 in step 1, the other 84 in step 2."""
    steps = run_case(Case(size=2, over_ask=1.5, max_lag=2, length=one_long, samples=2), 4)
    assert [rows_of(step.learned) for step in steps] == [[1, 2], [3, 4], [0, 5], [6, 7]]
    assert [step.steps[0] for step in steps] == [8, 16, 100, 104]
    assert TOKENS_BETWEEN_COUNTS == 8 and [step.lag for step in steps] == [0, 0, 2, 1]
    long = steps[2].learned[0].samples[1].sample
    assert long.versions.tolist() == [0] * 8 + [1] * 8 + [2] * 84
    assert steps[0].state["open"][0]["age"] == 1 and [len(s["tokens"]) for s in steps[0].state["open"][0]["samples"]] == [4, 8]


@pytest.mark.parametrize("world", [1, 2])
def test_a_stop_of_one_rank_abandons_the_step_on_all(world: int) -> None:
    def work(ranks: Any) -> bool:
        made = CASES["plain"].build(ranks)
        list(run_steps(made, ranks, 2))
        before = json.dumps(made.state()["open"])
        made.sampler.stopping.requested = ranks.rank == world - 1  # type: ignore[misc]
        engine: Any = made.sampler.engine
        return made.take() is None and not engine.pending and json.dumps(made.state()["open"]) == before

    assert together(world, work) == [True] * world
