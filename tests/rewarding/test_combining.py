"""Several scores become one reward: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from rlkit.errors import UserError
from rlkit.rewarding.combining import combine_rewards, combine_sample, standardise_scores
from rlkit.rewarding.failures import FailureWindow
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.spec import RewardSpec
from rlkit.rollout import records
from rlkit.rollout.sampler import join_reward
from rlkit.types import Group, Key, Sample, Stop
from tests.rewarding.settings import make_settings

NO_TOKENS = torch.zeros(0)
SAMPLE = Sample(Key(0, 0, 0), (1,), NO_TOKENS, NO_TOKENS.bool(), NO_TOKENS, NO_TOKENS.int(), Stop.EOS, "")
SPECS = {"right": RewardSpec(path="accuracy", weight=1.0), "form": RewardSpec(path="format_tags", weight=0.5, gate=True)}


def outcome(value: float | None) -> Outcome:
    return Outcome(OutcomeKind.NOT_APPLICABLE if value is None else OutcomeKind.SCORE, value)


@pytest.mark.parametrize(("how", "weight"), [("sum", 1e300), ("product", 2.0), ("gate", -1e300)])
def test_a_reward_too_large_to_compute_with_stops_the_run_in_words(how: str, weight: float) -> None:
    specs = {"a": RewardSpec(path="accuracy", weight=weight), "b": RewardSpec(path="accuracy", gate=True)}
    values = {"a": 1e60, "b": 1e60}
    with pytest.raises(UserError, match=rf"rewarding.combine={how} of .* is larger than 1e\+100; make the weights smaller"):
        combine_sample(specs, make_settings(combine=how), values, {name: outcome(value) for name, value in values.items()})


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_is_finite(weight: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        RewardSpec(path="accuracy", weight=weight)


@pytest.mark.parametrize(
    ("how", "right", "form", "reward"),
    [
        ("sum", 1.0, 1.0, 1.5),
        ("sum", 1.0, None, 1.0),
        ("sum", None, None, None),
        ("product", 3.0, 4.0, 6.0),
        ("product", 3.0, 0.0, 0.0),
        ("gate", 1.0, 1.0, 1.5),
        ("gate", 1.0, 0.0, 0.0),
        ("gate", 0.0, 1.0, 0.5),
    ],
)
def test_combine(how: str, right: float | None, form: float | None, reward: float | None) -> None:
    values = {"right": right, "form": form}
    components = {name: outcome(value) for name, value in values.items()}
    assert combine_sample(SPECS, make_settings(combine=how), values, components) == reward  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [OutcomeKind.TIMEOUT, OutcomeKind.ERROR])
def test_failed_is_no_reward_but_a_failed_watcher_voids_nothing(kind: OutcomeKind) -> None:
    rewards = {"right": RewardSpec(path="accuracy"), "watched": RewardSpec(path="length", weight=0.0)}
    good, failed = outcome(1.0), Outcome(kind)
    assert combine_sample(rewards, make_settings(), {"right": None, "watched": 1.0}, {"right": failed, "watched": good}) is None
    assert combine_sample(rewards, make_settings(), {"right": 1.0, "watched": None}, {"right": good, "watched": failed}) == 1.0
    watched = {"watched": rewards["watched"]}  # no reward counts: each sample has the reward 0, and none failed
    assert (
        combine_sample(watched, make_settings(), {"watched": None}, {"watched": failed})
        == 0.0
        == combine_sample({}, make_settings(), {}, {})
    )


def test_standardised_within_groups() -> None:
    values = {"a": 1.0, "b": 3.0, "c": None, "d": 5.0, "e": 5.0}
    groups = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}
    assert standardise_scores(values, groups) == {"a": -1.0, "b": 1.0, "c": None, "d": 0.0, "e": 0.0}


def test_normalise_each_gives_rewards_of_different_size_the_same_say() -> None:
    rewards = {"small": RewardSpec(path="accuracy"), "large": RewardSpec(path="length")}
    components = {n: {"small": outcome(small), "large": outcome(large)} for n, (small, large) in enumerate([(0.0, 100.0), (1.0, 300.0)])}
    groups = {0: "g", 1: "g"}
    each = combine_rewards(rewards, make_settings(normalise="each"), components, groups)
    assert [each[n].reward for n in (0, 1)] == [-2.0, 2.0]
    whole = combine_rewards(rewards, make_settings(normalise="sum"), components, groups)
    assert [whole[n].reward for n in (0, 1)] == [-1.0, 1.0]
    assert [whole[n].components["large"].value for n in (0, 1)] == [100.0, 300.0]


def test_what_people_read_is_the_reward_before_it_was_normalised() -> None:
    """Of one group: 0 + 100 and 1 + 300, and a third that failed. Learned from is 0 in the mean, whatever the policy does."""
    rewards = {"small": RewardSpec(path="accuracy"), "large": RewardSpec(path="length")}
    components = {n: {"small": outcome(small), "large": outcome(large)} for n, (small, large) in enumerate([(0.0, 100.0), (1.0, 300.0)])}
    components[2] = {"small": Outcome(OutcomeKind.ERROR), "large": outcome(None)}
    for normalise in ("none", "each", "sum"):
        told = combine_rewards(rewards, make_settings(normalise=normalise), components, dict.fromkeys(range(3), "g"))  # type: ignore[arg-type]
        group = Group(0, tuple(join_reward(SAMPLE, told[n]) for n in range(3)))
        assert [records.get_raw_reward(s) for s in group.samples] == [100.0, 301.0, None]
        seen = records.summarize_groups([group])
        assert (seen["reward"], seen["reward_std"], seen["rewards_failed"]) == (200.5, pytest.approx(201 / 2**0.5), 1.0)
        assert records.build_sample_row(group.samples[1], None, None, str, "train")["reward"] == 301.0
        learned = [s.reward for s in group.samples if s.reward is not None]
        assert sum(learned) == (401.0 if normalise == "none" else 0.0)


@pytest.mark.parametrize(
    ("limit", "failed", "exceeded"),
    [
        (0.05, "1", False),
        (0.05, "0110", False),  # two: still an accident
        (0.05, "0111", True),
        (0.05, "0" * 57 + "111", False),  # 3 of 60 are 5 %: not above
        (0.05, "0" * 56 + "111", True),
        (0.05, "1" * 60 + "0" * 1000, False),  # long ago
        (0.0, "01", True),
        (1.0, "1" * 50, False),
    ],
)
def test_failure_window(limit: float, failed: str, exceeded: bool) -> None:
    window = FailureWindow(limit)
    window.add(character == "1" for character in failed)
    assert window.is_over_limit() is exceeded
    restored = FailureWindow(limit)
    restored.restore(window.state())
    assert (restored.is_over_limit(), restored.state()) == (exceeded, failed[-1000:])
