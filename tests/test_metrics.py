from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
import torch

from rlkit.metrics import Max, Mean, Metrics, Quantile, Std, Sum, mean_of, mean_over_mask, merge, metric_values, std_of


def test_a_mean_of_parts_is_weighted_by_their_sizes() -> None:
    """1, 2, 3 here and 10 there: the mean is 4, and not the mean of 2 and 10."""
    assert mean_of([1, 2, 3]).merge(mean_of([10])).value == 4.0
    assert mean_of([]).merge(mean_of([5.0])).value == 5.0 and math.isnan(mean_of([]).value)


def test_sums_and_maxima() -> None:
    assert Sum(2.0).merge(Sum(3.0)).value == 5.0 and Max(-2.0).merge(Max(-3.0)).value == -2.0


def test_a_spread_is_that_of_all_the_numbers() -> None:
    assert std_of([1, 2, 3, 4]).value == pytest.approx(math.sqrt(5 / 3), abs=1e-15)
    assert std_of([7.0]).value == 0.0 and std_of([]).value == 0.0 and std_of([0.1] * 3).value == pytest.approx(0.0, abs=1e-8)
    rng = random.Random(11)
    numbers = [rng.gauss(5, 2) for _ in range(100)]
    parts = [std_of(numbers[:1]), std_of(numbers[1:40]), std_of([]), std_of(numbers[40:])]
    for order in itertools.permutations(parts):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        assert merged.value == pytest.approx(statistics.stdev(numbers), rel=1e-12)


def test_a_spread_far_from_zero_is_not_lost() -> None:
    """A step's total tokens, or a reward that is a time stamp: the spread of 1e9, 1e9 + 1, 1e9 + 2 is 1."""
    assert std_of([1e9, 1e9 + 1, 1e9 + 2]).value == pytest.approx(1.0, rel=1e-6)
    assert std_of([1e9]).merge(std_of([1e9 + 1, 1e9 + 2])).value == pytest.approx(1.0, rel=1e-6)


def test_a_quantile_is_that_of_all_numbers_however_they_are_dealt() -> None:
    """Nearest rank: of 1 to 200 the 50th percentile is 100 and the 99th is 198; the mean of two halves' would be 100 and 149."""
    for percent, expected in ((50, 100.0), (99, 198.0)):
        halves = [Quantile(tuple(map(float, part)), percent) for part in (range(101, 201), range(1, 101))]
        assert halves[0].merge(halves[1]).value == halves[1].merge(halves[0]).value == expected
    assert math.isnan(Quantile((), 50).value) and Quantile((3.0,), 99).value == 3.0


def test_masked_means_see_only_what_counts() -> None:
    grid = torch.tensor([[1.0, torch.nan], [3.0, 4.0]], requires_grad=True)
    assert mean_over_mask(grid, torch.tensor([[True, False], [True, True]])) == Mean(8.0, 3.0)
    assert mean_over_mask(grid, torch.zeros(2, 2, dtype=torch.bool)) == Mean(0.0, 0.0)


def test_merging_is_by_name_and_changes_nothing_given() -> None:
    mine: Metrics = {"a": Mean(1.0, 1.0), "b": Sum(1.0)}
    theirs: Metrics = {"a": Mean(5.0, 3.0), "c": Max(2.0), "d": Std(1.0, 2.0, 4.0)}
    assert metric_values(merge([mine, theirs])) == {"a": 1.5, "b": 1.0, "c": 2.0, "d": 0.0}
    assert mine == {"a": Mean(1.0, 1.0), "b": Sum(1.0)} and merge([]) == {}
    with pytest.raises(TypeError, match="metric a is a Mean here and a Sum there"):
        merge([mine, {"a": Sum(1.0)}])
