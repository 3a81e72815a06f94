"""The seconds of a step by phase."""

from __future__ import annotations

import time

from rlkit.runtime.timer import PhaseTimer


def test_the_row_after_a_checkpoint_has_its_time_and_no_later_one() -> None:
    timer = PhaseTimer(lambda name: None)
    with timer("checkpoint"):
        time.sleep(0.05)
    timer.restart(1)
    with timer("update"):
        pass
    first = timer.metrics()
    assert first["time/checkpoint"] >= 0.05 > first["time/step"] >= first["time/update"]
    with timer("checkpoint"):
        pass
    timer.restart(2)
    assert timer.metrics()["time/checkpoint"] < 0.05
    timer.restart(3)
    assert list(timer.metrics()) == ["time/step"]
