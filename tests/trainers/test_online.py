"""What a step of the online trainer says of groups that it dropped; whole steps are run in tests/runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.assembly import online as assembly
from rlkit.engines.base import make_sample
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.errors import RunFailed
from rlkit.metrics import metric_values
from rlkit.trainers.online_report import OnlineReport, StepRecord, join_metrics, list_request_lengths
from rlkit.types import Key, Request, Sample, Sampling, Stop
from tests.algorithms.tiny import Ranks, together
from tests.config.test_recipe import composed


@pytest.mark.parametrize(("kept", "left_out", "share"), [(4, 12, 0.75), (4, 0, 0.0), (0, 8, 1.0), (0, 0, 0.0)])
def test_groups_without_signal_are_counted_before_they_are_dropped(kept: int, left_out: int, share: float) -> None:
    notes: list[str] = []

    def work(ranks: Ranks) -> dict[str, float]:
        nothing: Any = None
        collector: Any = SimpleNamespace(prompts_per_step=4, surplus=[None] * 3)
        report: Any = SimpleNamespace(note=notes.append)
        rollout: Any = SimpleNamespace(refills=2)
        step = StepRecord(7, rollout, [nothing] * kept, nothing, nothing, {}, {}, {}, nothing)
        collector.max_refills = 2
        return OnlineReport(report, nothing, collector, nothing, nothing, ranks, nothing, nothing)._count_groups(step, left_out)  # type: ignore[arg-type]

    (row,) = together(1, work)
    assert row == {
        "groups/kept": kept,
        "groups/left_out": left_out,
        "groups/refills": 2,
        "groups/surplus": 3,
        "frac_reward_zero_std": share,
    }
    assert len(notes) == (kept < 4)


@pytest.mark.parametrize(("words", "grade", "cut"), [((), "accuracy", False), (("rewards.accuracy.weight=0",), None, True)])
def test_a_recipe_says_what_grades_and_whether_the_cut_are_learned_from(words: tuple[str, ...], grade: str | None, cut: bool) -> None:
    """A grade that is only watched does not decide what is learned from."""
    recipe = composed("recipe=dapo_math", f"mask_truncated_completions={str(cut).lower()}", "+rewards.other={path: length}", *words)
    context: Any = SimpleNamespace(recipe=recipe, ranks=None)
    made = assembly.build_collector(context, None, None, None)  # type: ignore[arg-type]
    assert (made.graded_by, made.mask_truncated_completions) == (grade, cut)


def test_a_metric_that_is_made_in_two_places_is_a_fault() -> None:
    assert join_metrics({"a": 1.0}, {}, {"b": 2.0}) == {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="metrics are made in two places: a"):
        join_metrics({"a": 1.0}, {"b": 2.0, "a": 1.0})


@pytest.mark.parametrize(("own", "said"), [([[True, False]], 0), ([[False, False]], 1)])
def test_a_step_whose_log_probs_cannot_be_compared_says_so(own: list[list[bool]], said: int) -> None:
    """The sampler is 5 nats off: with no token of the current weights that is seen by nobody, and must not pass for agreement."""
    nothing: Any = None
    logprob_check = LogprobCheck(1e-4)
    metrics = logprob_check.compare(torch.zeros(1, 2), torch.full((1, 2), -5.0), torch.tensor(own))
    if said:
        logprob_check.check(metrics)
    else:
        with pytest.raises(RunFailed, match="does not sample from the policy"):
            logprob_check.check(metrics)
    notes: list[str] = []
    report: Any = SimpleNamespace(note=notes.append)
    OnlineReport(report, nothing, nothing, nothing, nothing, nothing, nothing, nothing)._note_uncompared(3, metric_values(metrics))
    assert len(notes) == said and all("step 3: no token that it learns from was sampled by the current weights" in note for note in notes)


@pytest.mark.parametrize("world", [1, 2])
def test_the_age_of_the_tokens_of_a_step_is_that_of_all_ranks(world: int) -> None:
    """Five tokens count, 0, 0, 1, 2 and 2 steps old; the 7 does not."""
    lag, counts = torch.tensor([[0, 1, 7], [0, 2, 2]]), torch.tensor([[True, True, False], [True, True, True]])

    def work(ranks: Ranks, max_lag: int) -> dict[str, float]:
        nothing: Any = None
        batch: Any = SimpleNamespace(lag=lag[ranks.rank :: world], mask=counts[ranks.rank :: world])
        collector: Any = SimpleNamespace(max_lag=max_lag)
        return OnlineReport(nothing, nothing, collector, nothing, nothing, ranks, nothing, nothing)._measure_lag(batch)  # type: ignore[arg-type]

    assert together(world, lambda ranks: work(ranks, 2)) == [{"lag/mean": 1.0, "lag/max": 2.0}] * world
    assert together(world, lambda ranks: work(ranks, 0)) == [{}] * world  # a recipe that has no lag has no such row


def test_a_rollout_is_compared_with_what_its_own_weights_sampled() -> None:
    """Of a prompt of two tokens: three samples of this step, and a group of which one has five tokens of an earlier step, one all."""

    def of(*versions: int) -> Sample:
        request = Request(Key(0, 0, 0), (7, 8), Sampling(), 0)
        sample = make_sample(request, [1] * len(versions), [0.0] * len(versions), Stop.EOS, 0)
        return replace(sample, versions=torch.tensor(versions, dtype=torch.int32))

    assert list_request_lengths([of(3), of(3, 3), of(3, 3, 3)], 3) == [(2, [1, 2, 3])]
    assert list_request_lengths([of(1, 1, 2, 2, 2, 3, 3), of(3), of(2, 2)], 3) == [(7, [2]), (2, [1])]


def test_an_unusual_difference_is_one_warning_and_a_large_one_the_end() -> None:
    """The two bounds of bfloat16."""
    warnings: list[str] = []
    logprob_check = LogprobCheck(0.1, 0.02, warnings.append)

    def check(difference: float) -> None:
        logprob_check.check(logprob_check.compare(torch.zeros(1, 2), torch.full((1, 2), difference), torch.ones(1, 2, dtype=torch.bool)))

    check(0.01)
    assert warnings == []
    check(0.04)
    check(0.05)
    [warning] = warnings
    assert "its log-probs differ by 0.04 in the mean from the trainer's, more than the usual 0.02: rounding in bfloat16" in warning
    for difference in (0.11, float("nan")):
        with pytest.raises(RunFailed, match=r"in the mean, and at most 0\.1 is taken for rounding .* the two compute differently"):
            check(difference)
