"""Dynamic sampling: which groups a step learns from, which wait, which are dropped; the same on any number of ranks."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from rlkit.errors import RunFailed
from rlkit.rollout.collector import Collector
from rlkit.rollout.filters import has_signal
from rlkit.rollout.open_groups import OpenGroup
from rlkit.rollout.records import summarize_groups
from rlkit.rollout.sampler import SampledGroups
from rlkit.rollout.serialization import group_from_json, group_to_json
from rlkit.types import Group, Key, Sample, Sampling, ScoredSample, Stop
from rlkit.updates.collate import collate
from tests.algorithms.test_grpo import FULL, Way, difference, learn
from tests.algorithms.tiny import Ranks, together


@dataclass
class Rows:
    """Prompts 0, 1, 2, ... without end."""

    next: int = 0

    def take(self, n: int) -> list[int]:
        self.next += n
        return list(range(self.next - n, self.next))

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


@dataclass
class StubSampler:
    """Rewards two samples of a prompt; they differ where the pattern, cycled over prompts, says so."""

    pattern: str  # "1": a signal, "0": none, "x": the rewards failed, "p": both are right, and a penalty differs
    version: int = 0
    asked: list[int] = field(default_factory=list)

    def sample(self, groups: Sequence[OpenGroup], samples: int, sampling: Sampling, greedy: bool, quota: None) -> SampledGroups:
        rows: list[Any] = [group.prompt for group in groups]
        self.asked += rows
        return SampledGroups([self.group(group.index, row) for group, row in zip(groups, rows, strict=True)], [])

    def group(self, number: int, row: int) -> Group:
        kind = self.pattern[row % len(self.pattern)]
        rewards = {"1": (0.0, 1.0), "0": (1.0, 1.0), "x": (1.0, None), "p": (1.0, 0.5)}[kind]
        parts = {"accuracy": 1.0, "overlong": 0.0} if kind == "p" else {}
        return Group(number, tuple(ScoredSample(completion(row, n, self.version), reward, parts) for n, reward in enumerate(rewards)))


def completion(row: int, n: int, version: int) -> Sample:
    length = 1 + (row + n) % 3
    return Sample(
        key=Key(row, 0, n),
        prompt=(row, 7),
        tokens=torch.arange(length),
        mask=torch.ones(length, dtype=torch.bool),
        rollout_logprobs=torch.full((length,), -1 / 3),
        versions=torch.full((length,), version, dtype=torch.int32),
        stop=Stop.EOS,
        text="é\n",
    )


def collector(sampler: StubSampler, ranks: Ranks, size: int, max_refills: int | None = 4) -> Collector:
    return Collector(sampler, Rows(), ranks, size, 2, Sampling(), False, max_refills)  # type: ignore[arg-type]


def steps(pattern: str, size: int, count: int, world: int, max_refills: int | None = 4, cut: int | None = None) -> Any:
    """Of each step: the rows learned from in order, those left out, the refills, the surplus. cut: a resumed run from that step on."""

    def work(ranks: Ranks) -> Any:
        sampler = StubSampler(pattern)
        made = collector(sampler, ranks, size, max_refills)
        seen = []
        for step in range(count):
            if step == cut:
                kept = json.loads(json.dumps(made.state()))
                made = collector(sampler, ranks, size, max_refills)
                made.load(kept)
            sampler.version = step
            taken = made.take()
            assert taken is not None
            groups, batch = collate(taken.groups, ranks, 1, step, made.max_lag)  # type: ignore[arg-type]
            left = sorted((g for part in ranks.gather(taken.left_out) for g in part), key=lambda g: g.index)
            surplus = made.state()["surplus"]
            assert torch.equal(batch.own, batch.mask & batch.own.any(-1, keepdim=True))  # a group is of one step
            seen.append((rows(groups), rows(left), taken.refills, [g["samples"][0]["sample"]["key"][0] for g in surplus]))
        return seen

    answers = together(world, work)
    assert all(a == answers[0] for a in answers)
    return answers[0]


def rows(groups: list[Group]) -> list[int]:
    return [g.samples[0].sample.key.prompt for g in groups]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_groups_without_signal_are_replaced_and_surplus_waits_for_the_next_step(world: int) -> None:
    first, second = steps("110x", size=4, count=2, world=world)
    # 0 to 3 are asked, 2 and 3 say nothing; half had a signal, so four more are asked: 4 and 5 fill the step
    assert first == ([0, 1, 4, 5], [2, 3, 6, 7], 1, [])
    assert second == ([8, 9, 12, 13], [10, 11, 14, 15], 1, [])
    first, second = steps("11101", size=4, count=2, world=world)
    # 3 says nothing; at 3 of 4 two prompts are asked for the one that is missing: 4 fills the step, 5 waits
    assert first == ([0, 1, 2, 4], [3], 1, [5])
    # 5 first, then three prompts; 8 says nothing; at 2 of 3 two prompts: 9 fills the step, 10 waits
    assert second == ([5, 6, 7, 9], [8], 1, [10])


@pytest.mark.parametrize("world", [1, 3])
def test_a_step_ends_after_max_refills_with_what_it_has(world: int) -> None:
    (only,) = steps("1000000000", size=4, count=1, world=world, max_refills=1)
    assert only == ([0], [1, 2, 3, 4, 5, 6, 7], 1, [])
    (none,) = steps("0", size=4, count=1, world=world, max_refills=2)
    assert none == ([], list(range(12)), 2, [])
    (kept,) = steps("0", size=4, count=1, world=world, max_refills=None)  # no dynamic sampling: all are kept
    assert kept == ([0, 1, 2, 3], [], 0, [])


@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_run_takes_the_same_groups(world: int) -> None:
    whole = steps("11101", size=4, count=5, world=world)
    assert any(surplus for *_, surplus in whole[:4])
    for cut in range(1, 5):
        assert steps("11101", size=4, count=5, world=world, cut=cut) == whole


def test_a_stored_group_is_the_group_to_the_last_bit() -> None:
    group = StubSampler("1").group(3, 5)
    odd = replace(group.samples[0], sample=replace(group.samples[0].sample, rollout_logprobs=torch.tensor([0.1, -1e-30, -7.7e5])))
    answer = ["7", 8.5, {"unit": None}]
    group = replace(group, samples=(odd, group.samples[1]), greedy=group.samples[1], answer=answer)
    back = group_from_json(json.loads(json.dumps(group_to_json(group))))
    assert (back.index, len(back.samples), back.answer) == (3, 2, answer) and back.greedy is not None
    assert group_from_json(group_to_json(replace(group, answer=datetime.date(2026, 1, 2)))).answer == "2026-01-02"
    for ours, theirs in zip((*group.samples, group.greedy), (*back.samples, back.greedy), strict=True):
        assert (ours.reward, ours.components, ours.extra) == (theirs.reward, theirs.components, theirs.extra)
        for name, value in vars(ours.sample).items():
            other = getattr(theirs.sample, name)
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype and torch.equal(value, other), name
            else:
                assert type(value) is type(other) and value == other, name


def test_a_group_has_a_signal_where_its_valid_rewards_differ() -> None:
    sampler = StubSampler("10x")
    assert [has_signal(sampler.group(n, n)) for n in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("rewards", "grades", "signal"),
    [
        ([0.0, -0.5], [0.0, 0.0], False),  # all wrong, one of them long
        ([1.0, 0.5], [1.0, 1.0], False),  # all right, one of them long
        ([1.0, -0.5], [1.0, 0.0], True),
        ([0.0, 0.0], [1.0, 0.0], False),  # the penalty took just as much: no advantage
        ([0.25, 0.5], [0.25, 0.5], True),  # a grade without a limit of right and wrong
        ([0.25, 0.5], [None, None], True),  # not graded, so the rewards say
        ([1.0, 0.5, None], [1.0, 1.0, 0.0], False),  # another reward failed for the wrong one
    ],
)
def test_where_answers_are_graded_the_grades_differ_too(rewards: list[Any], grades: list[Any], signal: bool) -> None:
    """0 < right answers < all of them, as in DAPO; without a grade a penalty is a signal."""
    told = zip(rewards, grades, strict=True)
    group = Group(0, tuple(ScoredSample(completion(0, n, 0), r, {"accuracy": g, "overlong": -0.5}) for n, (r, g) in enumerate(told)))
    assert has_signal(group, "accuracy") is signal
    assert has_signal(group) is has_signal(group, "elsewhere") is (len({r for r in rewards if r is not None}) > 1)


def test_dynamic_sampling_replaces_groups_that_are_all_right_but_for_a_penalty() -> None:
    (only,) = steps("1p1", size=2, count=1, world=1)
    assert only == ([0, 2], [1], 1, [3])  # half of the first two had a signal, so two more are asked: 2 fills the step, 3 waits


def ending(groups: list[Group], tokens: int) -> list[Group]:
    """The second completion of each group was cut at the limit; its tokens are all this one."""

    def cut(scored: ScoredSample) -> ScoredSample:
        return replace(scored, sample=replace(scored.sample, stop=Stop.LENGTH, tokens=torch.full_like(scored.sample.tokens, tokens)))

    return [replace(g, samples=(g.samples[0], cut(g.samples[1]), *g.samples[2:])) for g in groups]


@dataclass
class CutSampler(StubSampler):
    def sample(self, *asked: Any) -> SampledGroups:
        return SampledGroups(ending(super().sample(*asked).complete, 3), [])


@pytest.mark.parametrize("masks", [False, True])
def test_completions_that_were_cut_can_be_left_out_of_the_loss(masks: bool) -> None:
    """They stay in their group, with their reward."""

    def work(ranks: Ranks) -> None:
        made = replace(collector(CutSampler("1"), ranks, 2, None), mask_truncated_completions=masks)
        taken = made.take()
        assert taken is not None
        groups, batch = collate(taken.groups, ranks, 1, 0, mask_truncated=made.mask_truncated_completions)  # type: ignore[arg-type]
        assert batch.mask.any(-1).tolist() == [True, not masks] * 2 and batch.rewards.tolist() == [0.0, 1.0] * 2
        assert [[s.sample.stop for s in g.samples] for g in groups] == [[Stop.EOS, Stop.LENGTH]] * 2
        assert summarize_groups(groups)["completions/mean_length"] == 2.0  # of what the policy wrote, masked in the loss or not

    together(1, work)


def test_the_length_of_a_completion_is_what_the_policy_wrote() -> None:
    """The tokens of an environment have mask False."""
    group = StubSampler("1").group(0, 0)
    scored = group.samples[0]
    observed = replace(scored, sample=replace(scored.sample, tokens=torch.arange(3), mask=torch.tensor([False, False, True])))
    row = summarize_groups([replace(group, samples=(observed, observed))])
    assert (row["completions/mean_length"], row["completions/max_length"], row["completions/mean_terminated_length"]) == (1.0,) * 3


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_no_gradient_comes_from_a_completion_that_was_masked(reduction: str) -> None:
    """Every sample moves the policy here (a KL and the entropy), and what the masked ones say changes nothing."""
    keys = FULL.model_copy(update={"reduction": reduction})

    def gradient(tokens: int, masks: bool) -> torch.Tensor:
        def mask(s: ScoredSample) -> ScoredSample:
            return replace(s, sample=replace(s.sample, mask=s.sample.mask & (not masks or s.sample.stop is not Stop.LENGTH)))

        return learn(keys, Way(order=lambda groups: [replace(g, samples=tuple(map(mask, g.samples))) for g in ending(groups, tokens)]))[0][
            0
        ]

    masked = gradient(3, True)
    assert torch.equal(masked, gradient(8, True)) and float(masked.norm()) > 1e-3
    assert difference([gradient(3, False)], [gradient(8, False)]) > 1e-3


def test_samples_older_than_the_collector_allows_never_reach_a_loss() -> None:
    old = [StubSampler("1", version=2).group(0, 0)]

    def work(ranks: Ranks) -> None:
        _, batch = collate(old, ranks, 1, 3, max_lag=1)  # type: ignore[arg-type]
        assert torch.equal(batch.lag, batch.mask.long()) and not batch.own.any()
        for version, most in ((3, 0), (4, 1), (1, 1)):  # too old, too old, from the future
            with pytest.raises(RunFailed, match=f"the policy is at {version}"):
                collate(old, ranks, 1, version, most)  # type: ignore[arg-type]

    together(1, work)
