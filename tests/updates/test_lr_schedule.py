from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from rlkit.assembly import common
from rlkit.updates.lr_schedule import Schedule


def rates(kind: str, warmup: int, total: int, floor: float = 0.0) -> list[float]:
    schedule = Schedule(1.0, kind, warmup, total, floor)  # type: ignore[arg-type]
    return [schedule.lr(update) for update in range(total)]


def test_exact_rates() -> None:
    assert rates("constant", 0, 3) == [1.0, 1.0, 1.0]
    assert rates("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25]  # 0 would come one update after the last: none is wasted
    assert rates("linear", 2, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine", 0, 4) == pytest.approx([1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4], abs=1e-15)
    assert rates("constant", 4, 5) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates("linear", 2, 6, 0.5) == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625]  # towards 0.5, one update after the last
    assert rates("cosine", 1, 3, 0.5) == pytest.approx([1.0, 1.0, 0.75], abs=1e-15)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (3, 10), (10, 10), (20, 10), (0, 1000)])
def test_a_rate_is_never_negative_or_above_the_peak_and_never_zero(kind: str, warmup: int, total: int) -> None:
    every = rates(kind, warmup, total)
    assert all(0.0 < lr <= 1.0 for lr in every)
    up, down = every[: min(warmup, total)], every[warmup:]
    assert up == sorted(up) and down == sorted(down, reverse=True)


def test_the_peak_scales_everything() -> None:
    assert Schedule(5e-4, "linear", 0, 10).lr(5) == 2.5e-4 and Schedule(0.0, "cosine", 3, 10).lr(1) == 0.0


def test_who_waits_has_fewer_updates_to_fall_over() -> None:
    """10 steps of 2 updates, a warm-up of one step: 20 and 2. Whoever waits for 3 steps warms up as long, and has 14 in all."""
    optim = SimpleNamespace(lr=0.5, schedule="linear", warmup_steps=1.0, min_lr_ratio=0.0)
    recipe = SimpleNamespace(steps=10, updates_per_step=2, optim=optim)
    assert common.build_schedule(recipe) == Schedule(0.5, "linear", 2, 20)  # type: ignore[arg-type]
    assert common.build_schedule(recipe, 0.1) == Schedule(0.1, "linear", 2, 20)  # type: ignore[arg-type]
    assert common.build_schedule(recipe, delay=6) == Schedule(0.5, "linear", 2, 14)  # type: ignore[arg-type]


@pytest.mark.parametrize(("warmup", "updates"), [(0.0, 0), (0.1, 3), (0.11, 4), (0.07, 3), (0.99, 30), (1.0, 3), (4.0, 12)])
def test_a_warm_up_is_whole_steps_or_a_share_of_all(warmup: float, updates: int) -> None:
    """Of 10 steps of 3 updates; a share is rounded up."""
    assert common.count_warmup_updates(warmup, 3, 30) == updates


def test_a_share_is_that_of_its_decimal() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    assert common.count_warmup_updates(0.07, 1, 100) == 7
