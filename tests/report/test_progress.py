"""The line of a phase: seconds, how far it is, its speed, and the time that is left."""

from __future__ import annotations

import pytest

from rlkit.report.progress import Phase
from rlkit.runtime.heartbeat import Progress


@pytest.mark.parametrize(
    ("progress", "seconds", "line"),
    [
        (Progress(), 0.4, "rollout"),
        (Progress(), 90.0, "rollout 1:30"),
        (Progress(0, 64, "samples"), 5.0, "rollout 0:05  0/64 samples"),
        (Progress(16, 64, "samples", 3000), 30.0, "rollout 0:30  16/64 samples  tokens/s 100  eta 1:30"),
        (Progress(64, 64, "samples", 3000), 30.0, "rollout 0:30  64/64 samples  tokens/s 100"),
        (Progress(3, 4, "micro-batches"), 30.0, "rollout 0:30  3/4 micro-batches  eta 0:10"),
    ],
)
def test_the_line_of_a_phase(progress: Progress, seconds: float, line: str) -> None:
    assert Phase("rollout", 100.0).format(progress, 100.0 + seconds) == line
