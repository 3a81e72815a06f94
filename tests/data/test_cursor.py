from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from rlkit.data.cursor import Cursor
from rlkit.errors import UserError


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    taken = Cursor(100, seed=3).take(0, 300)
    epochs = [[row for row, draw in taken if draw == epoch] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(100))
    assert [draw for _, draw in taken] == [0] * 100 + [1] * 100 + [2] * 100


def test_the_order_is_this_one_for_ever() -> None:
    """Worked out once; a change of it would make every resumed run repeat and skip rows."""
    assert [row for row, _ in Cursor(8, seed=0).take(0, 8)] == [3, 6, 1, 0, 4, 5, 2, 7]
    assert [row for row, _ in Cursor(1_000_000, seed=1).take(999_998, 4)] == [915205, 295651, 930302, 505211]


def test_the_order_depends_on_the_seed_alone_and_not_on_how_it_is_asked_for() -> None:
    whole = Cursor([30, 70], seed=5, weights=[3, 1]).take(0, 500)
    cursor = Cursor([30, 70], seed=5, weights=[3, 1])
    backwards = [cursor.take(position, 1)[0] for position in reversed(range(500))]
    assert backwards[::-1] == whole
    assert Cursor([30, 70], seed=6, weights=[3, 1]).take(0, 500) != whole


def test_small_orders_are_fair() -> None:
    """Every one of the 6 orders of 3 rows comes 1000 times in 6000 epochs, within 4 standard deviations (116)."""
    seen = Counter(tuple(row for row, _ in Cursor(3, seed=seed).take(0, 3)) for seed in range(6000))
    assert len(seen) == 6 and all(abs(count - 1000) < 116 for count in seen.values())


@pytest.mark.parametrize(("weights", "block", "share"), [([3, 1], 4, 3), ([0.75, 0.25], 4, 3), ([2, 1], 3, 2), ([0.1, 0.2], 3, 1)])
def test_sources_are_mixed_in_the_ratio_of_their_weights(weights: list[float], block: int, share: int) -> None:
    taken = Cursor([1000, 10], seed=0, weights=weights).take(0, 100 * block)
    for start in range(0, len(taken), block):
        assert sum(row < 1000 for row, _ in taken[start : start + block]) == share
    assert len(set(taken)) == len(taken)  # (row, draw) is unique, also of the small source that comes round often
    again = [place for place in taken if place[0] >= 1000]
    assert [draw for _, draw in again] == [turn // 10 for turn in range(len(again))]


def test_odd_weights_are_met_within_a_thousandth() -> None:
    weights = [0.1234567, 0.4567891, 0.3141592]
    taken = Cursor([50, 50, 50], seed=0, weights=weights).take(0, 1000)
    seen = np.bincount([row // 50 for row, _ in taken]) / 1000
    assert np.abs(seen - np.array(weights) / sum(weights)).max() <= 0.001
    with pytest.raises(UserError, match="expected numbers above 0"):
        Cursor([1, 1], seed=0, weights=[1, 0])


def test_without_weights_sources_are_one_shuffle() -> None:
    assert Cursor([60, 40], seed=2).take(0, 100) == Cursor(100, seed=2).take(0, 100)


def test_a_curriculum_goes_from_small_to_large_and_shuffles_equals() -> None:
    values = np.array([2.0, 1.0] * 50)
    rows = [row for row, _ in Cursor(100, seed=0, values=values).take(0, 200)]
    assert [values[row] for row in rows] == ([1.0] * 50 + [2.0] * 50) * 2
    assert sorted(rows[:50]) == list(range(1, 100, 2)) and rows[:50] != sorted(rows[:50]) and rows[:100] != rows[100:]


def test_a_million_rows_cost_next_to_nothing() -> None:
    start = time.process_time()
    assert len(Cursor(1_000_000, seed=0).take(0, 1000)) == 1000
    assert time.process_time() - start < 2
