"""Rollouts that leave long samples to the next step, against rollouts that wait for them, on the same real vLLM.

    python -m tests.bench.carry_over [FOLDER]      a model in Hugging Face format; default: the built-in one

16 prompts x 8 samples a step, lengths forced to be log-normal (mean 128, at most 512); over_ask=1 and 1.5 take turns. Decode steps are
counted exactly, seconds are the rollout's. Exit code 0: at most 0.7 of the steps and 0.85 of the time.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from rlkit.engines.base import RolloutEngine
from rlkit.rewarding.outcome import SampleReward
from rlkit.rollout.collector import Collector
from rlkit.rollout.sampler import Sampler
from rlkit.types import Key, Request, Sample, Sampling

LONGEST, PROMPTS, SAMPLES = 512, 16, 8
ROUNDS, STEPS = 2, 6  # steps of a turn, the first of which does not count


def draw_length(key: Key) -> int:
    """Half of the variance of its logarithm is the prompt's."""
    prompt, own = random.Random(f"{key.of_prompt}").gauss(0, 1), random.Random(f"{key}").gauss(0, 1)
    return max(1, min(LONGEST, round(135.0 * math.exp(0.8 * (prompt + own) / math.sqrt(2) - 0.32))))


class ForcedLengths:
    """A real engine without end tokens, whose samples stop at the length of their key; counts its decode steps."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine, self.steps = engine, 0
        self.tokens_per_advance = engine.tokens_per_advance

    @property
    def pending(self) -> int:
        return self.engine.pending

    def add(self, request: Request) -> None:
        self.engine.add(replace(request, sampling=replace(request.sampling, max_tokens=draw_length(request.key))))

    def advance(self) -> list[Sample]:
        self.steps += 1
        return self.engine.advance()

    def abort(self) -> list[Sample]:
        return self.engine.abort()


class Rewards:
    """Nothing is scored, so that nothing but sampling takes time."""

    def asks_for(self, name: str) -> bool:
        return False

    def submit(self, *arguments: Any, **keywords: Any) -> None: ...

    def collect(self, keys: list[Key]) -> dict[Key, SampleReward]:
        return {key: SampleReward(0.0, {}, {}) for key in keys}


class Rows:
    """Prompts of eight tokens, without end."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, n: int) -> list[Any]:
        self.next += n
        rows = range(self.next - n, self.next)
        return [
            SimpleNamespace(row=row, draw=0, tokens=tuple(40 + (row + i) % 60 for i in range(8)), prompt="", answer=None, columns={})
            for row in rows
        ]


def measure(engine: RolloutEngine, ranks: Any, over_ask: float) -> tuple[list[int], list[float]]:
    """Decode steps and seconds of each step but the first."""
    forced: Any = ForcedLengths(engine)
    rewards: Any = Rewards()
    decoder: Any = SimpleNamespace(decode=lambda ids, special=False: "")
    stopping: Any = SimpleNamespace(requested=False)
    rows: Any = Rows()
    sampler = Sampler(forced, rewards, decoder, stopping, 0, ranks)
    collector = Collector(sampler, rows, ranks, PROMPTS, SAMPLES, Sampling(max_tokens=LONGEST), False, over_ask=over_ask, carried_lag=2)
    steps, seconds = [], []
    for _ in range(STEPS):
        before, start = forced.steps, time.perf_counter()
        rollout = collector.take()
        assert rollout is not None and len(rollout.groups) == PROMPTS
        steps.append(forced.steps - before)
        seconds.append(time.perf_counter() - start)
    return steps[1:], seconds[1:]


def main(folder: str | None) -> int:
    from transformers import AutoModelForCausalLM

    from rlkit.builtin.model import ensure_model
    from rlkit.engines.vllm import VLLMEngine
    from rlkit.runtime.cache import find_cache_folder
    from rlkit.runtime.ranks import Ranks

    ranks = Ranks()
    path = folder or str(ensure_model(find_cache_folder()))
    weights = AutoModelForCausalLM.from_pretrained(path).float().state_dict()
    engine = VLLMEngine(
        path,
        "float32",
        names=list(weights),
        max_model_len=LONGEST + 16,
        eos=frozenset(),
        world=1,
        sleeps=False,
        extra={"max_num_seqs": 256},
    )

    def send() -> Iterator[tuple[str, Tensor]]:
        yield from weights.items()

    engine.load(send(), 0)
    found: dict[float, tuple[list[int], list[float]]] = {1.0: ([], []), 1.5: ([], [])}
    for _ in range(ROUNDS):
        for over_ask, (steps, seconds) in found.items():
            more_steps, more_seconds = measure(engine, ranks, over_ask)
            steps += more_steps
            seconds += more_seconds
    for over_ask, (steps, seconds) in found.items():
        print(f"over_ask={over_ask:g}: {statistics.mean(steps):.1f} decode steps, {statistics.mean(seconds):.2f} s a rollout")
    share, time_share = (sum(found[1.5][i]) / sum(found[1.0][i]) for i in (0, 1))
    print(f"1.5 / 1: {share:.3f} of the decode steps, {time_share:.3f} of the time")
    return int(share > 0.7 or time_share > 0.85)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
