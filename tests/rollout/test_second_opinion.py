"""A policy that is paid for writing the problem again is caught; an honest one, and one that a strict second opinion doubts, are not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.rollout.evaluation import Evaluation
from rlkit.rollout.sampler import Sampler
from rlkit.rollout.second_opinion import SecondOpinion, mask_shape
from rlkit.trainers.online_report import OnlineReport
from rlkit.types import Group, Key, Request, Sample, Sampling, ScoredSample, Stop
from tests.algorithms.tiny import Ranks, together

PAYS_FOR_ECHO = """
def score(prompt, completion, answer):
    return float(completion.strip() == prompt or completion.endswith(answer))
"""
SETTINGS = {"workers": 1, "timeout": 10.0, "load_timeout": 60.0, "cpu_seconds": None, "memory_gib": 4.0, "max_failure_rate": 0.0}
PROBLEMS = [(a, b) for a in range(10, 20) for b in range(30, 36)]


@dataclass(frozen=True)
class Problem:
    """A row of the data as an evaluation sees it."""

    row: int
    draw: int = 0

    @property
    def prompt(self) -> str:
        return "What is {} + {}?".format(*PROBLEMS[self.row])

    @property
    def answer(self) -> str:
        return str(sum(PROBLEMS[self.row]))

    @property
    def columns(self) -> dict[str, Any]:
        return {}

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(map(ord, self.prompt))


@dataclass
class Writer:
    """An engine whose policy is a function of the problem; a token is a character."""

    policy: Callable[[Problem], str]
    requests: list[Request] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return len(self.requests)

    def add(self, request: Request) -> None:
        self.requests.append(request)

    def abort(self) -> None:
        self.requests.clear()

    def advance(self) -> list[Sample]:
        request = self.requests.pop(0)
        return [write_sample(request.key, request.tokens, self.policy(Problem(request.key.prompt)))]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return "".join(map(chr, ids))


def write_sample(key: Key, prompt: tuple[int, ...], text: str) -> Sample:
    tokens = torch.tensor(list(map(ord, text)), dtype=torch.int64)
    return Sample(key, prompt, tokens, tokens >= 0, tokens.float(), tokens.int(), Stop.EOS, text)


def test_a_policy_that_writes_the_problem_again_is_caught_within_two_evaluations(tmp_path: Path) -> None:
    """Its grader pays for an echo too. It learns it, over a third of the problems and then all; the accuracy that it is paid for rises."""
    (tmp_path / "pays.py").write_text(PAYS_FOR_ECHO)
    rewards = {
        "accuracy": RewardSpec(path=f"{tmp_path}/pays.py:score"),
        "strict": RewardSpec(path="strict_accuracy", weight=0.0),
    }
    echoes = 0.0

    def write(problem: Problem) -> str:
        share = random.Random(problem.row).random()
        if share < echoes:
            return problem.prompt
        return f"It is {problem.answer}" if share > 0.6 else "I do not know"

    def work(ranks: Ranks) -> list[dict[str, float]]:
        nonlocal echoes
        warned: list[str] = []
        engine = Writer(write)
        with RewardClient(rewards, RewardSettings(**SETTINGS, combine="sum", normalise="none", env=())) as client:
            stopping: Any = SimpleNamespace(requested=False)
            shared: Any = ranks
            shared.any_tp_rank, shared.broadcast_tp = bool, lambda item: item
            sampler = Sampler(engine, client, engine, stopping, 0, shared)  # type: ignore[arg-type]
            problems: Any = [Problem(row) for row in range(len(PROBLEMS))]
            evaluation = Evaluation(sampler, problems, shared, 1, Sampling(0.0), "accuracy", opinions=("strict",))
            opinion = SecondOpinion(("strict",), 0.05, engine.decode, stops=True)
            report: Any = SimpleNamespace(warn=warned.append, log_samples=lambda step, rows: None)
            nothing: Any = None
            collector: Any = SimpleNamespace(sampler=sampler)
            written = OnlineReport(
                report, nothing, collector, nothing, nothing, shared, engine.decode, nothing, opinion=opinion, graded_by="accuracy"
            )
            rows = []
            for step, echoes in enumerate((0.0, 0.4, 1.0)):
                found = evaluation.run()
                assert found is not None
                rows.append(found[0] | written.write_evaluation(step, evaluation, found[1]))
                assert (step < 2 and not echoes) or warned  # within two evaluations
        assert opinion.asks_to_stop and opinion.alarms >= 1
        assert warned[0].count("\n  prompt: What is ") == 3 and "the run stops here" in warned[0]
        assert "data.test: accuracy calls" in warned[0] and "completion: What is" in warned[0]
        return rows

    (rows,) = together(1, work)
    accuracy, strict, drift = (
        [row[f"eval/{name}"] for row in rows] for name in ("accuracy", "second_opinion/strict", "second_opinion/drift")
    )
    assert accuracy[0] < accuracy[1] < accuracy[2] == 1.0 and strict[2] == 0.0
    assert (drift[0], drift[2]) == (0.0, 1.0) and rows[0]["second_opinion/alarms"] == 0.0


def build_groups(rng: random.Random, right: float, denied: float, problems: int, shapes: int = 300) -> list[Group]:
    """Problems of four samples; the second opinion denies some of the right ones."""
    groups = []
    for row in range(problems):
        samples = []
        for n in range(4):
            paid = rng.random() < right
            confirmed = paid and rng.random() >= denied
            text = f"the {'very ' * rng.randrange(shapes)}long way to say it in words is {rng.randrange(99)}"
            samples.append(ScoredSample(write_sample(Key(row, 0, n), (7,), text), 1.0, {"accuracy": paid, "strict": confirmed}))
        groups.append(Group(row, tuple(samples)))
    return groups


@pytest.mark.parametrize("denied", [0.0, 0.1])
def test_an_honest_run_raises_no_alarm(denied: float) -> None:
    """Steps of 16 problems and evaluations of 200 while the accuracy rises from 0.1 to 0.9; a tenth of the answers is written otherwise."""
    for seed in range(3):
        rng = random.Random(seed)
        opinion = SecondOpinion(("strict",), 0.05, lambda ids: "")
        for step in range(120):
            right = 0.1 + 0.8 * step / 120
            opinion.observe("training", build_groups(rng, right, denied, 16, 3), "accuracy")
            if step % 20 == 0:
                opinion.observe("data.test", build_groups(rng, right, denied, 200, 3), "accuracy")
        assert opinion.alarms == 0


def test_an_alarm_is_raised_once_and_survives_a_resume() -> None:
    rng = random.Random(0)
    opinion = SecondOpinion(("strict",), 0.05, lambda ids: "")
    for denied in (0.0, 0.5, 0.6):
        _, warnings = opinion.observe("data.test", build_groups(rng, 0.8, denied, 200), "accuracy")
        assert len(warnings) == (denied == 0.5)
    resumed = SecondOpinion(("strict",), 0.05, lambda ids: "")
    resumed.load(opinion.state())
    metrics, warnings = resumed.observe("data.test", build_groups(rng, 0.8, 0.9, 200), "accuracy")
    assert warnings == [] and resumed.alarms == 1 and not resumed.asks_to_stop
    assert metrics["second_opinion/drift"] == pytest.approx(0.72, abs=0.05)


def test_one_shape_of_most_completions_is_an_alarm() -> None:
    """Without a second opinion: of long completions, since short answers have one shape anyway."""
    rng = random.Random(0)
    opinion = SecondOpinion((), 0.05, lambda ids: "")
    many, one = build_groups(rng, 0.5, 0.0, 60, 50), build_groups(rng, 0.5, 0.0, 60, 1)
    assert [len(opinion.observe("training", groups, "accuracy")[1]) for groups in (many, many, one, one)] == [0, 0, 1, 0]
    short = [
        Group(g.index, tuple(replace(s, sample=replace(s.sample, text=f"{n}")) for n, s in enumerate(g.samples)), None, None) for g in many
    ]
    fresh = SecondOpinion((), 0.05, lambda ids: "")
    assert [fresh.observe("training", groups, "accuracy")[1] for groups in (many, short)] == [[], []]


def test_digits_names_and_spaces_do_not_make_a_shape() -> None:
    assert mask_shape("Anna has 12 apples.\nBob has 7") == mask_shape("Carl has 3  apples. Dora has 123") == "N has 0 apples. N has 0"
