"""report.png shows what there is, and a run without rows has one too."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from rlkit.report.picture import _draw_time, draw_report
from rlkit.runtime.timer import PHASES, PhaseTimer

BLUE, ORANGE, GREEN = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)  # reward and train, held-out, length
STEPS: list[dict[str, Any]] = [
    {"step": 0, "attempt": 1, "eval/accuracy": 0.25, "time/evaluation": 0.5},
    {
        "step": 1,
        "attempt": 1,
        "reward": 0.5,
        "reward_std": 0.1,
        "rewards/accuracy/mean": 0.5,
        "completions/mean_length": 60.0,
        "time/rollout": 2.0,
    },
    {"step": 2, "attempt": 1, "reward": None, "not_finite": {"reward": "nan"}, "time/rollout": 2.0, "time/update": 1.0, "time/step": 3.0},
    {"step": 3, "attempt": 1, "reward": 0.75, "reward_std": 0.1, "completions/mean_length": 70.0, "eval/accuracy": 0.5, "time/update": 1.0},
]


def _dots(path: Path, color: tuple[int, int, int]) -> set[tuple[bool, bool]]:
    """The quarters of the picture (lower?, right?) in which this exact colour is drawn."""
    image = matplotlib.image.imread(path)  # [height, width, RGBA] from 0 to 1
    where = ((image[..., :3] * 255).round().astype(int) == color).all(-1).nonzero()
    return {(bool(row >= 770 / 2), bool(column >= 1210 / 2)) for row, column in zip(*where, strict=True)}


@pytest.mark.parametrize("rows", [[], STEPS[:1], STEPS[1:2], STEPS[1:]], ids=["none", "evaluation", "one step", "three steps"])
def test_any_number_of_rows_makes_a_png(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    draw_report(rows, tmp_path / "report.png")
    data = (tmp_path / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1210, 770)
    assert data[-8:-4] == b"IEND"
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]


def test_curves_are_where_their_numbers_are(tmp_path: Path) -> None:
    reward, accuracy, length = (False, False), (False, True), (True, False)
    draw_report([], tmp_path / "empty.png")
    assert _dots(tmp_path / "empty.png", BLUE) == _dots(tmp_path / "empty.png", ORANGE) == set()
    draw_report(STEPS[:1], tmp_path / "start.png")
    assert _dots(tmp_path / "start.png", BLUE) == set()
    assert _dots(tmp_path / "start.png", ORANGE) == {accuracy}
    draw_report(STEPS, tmp_path / "run.png")
    assert _dots(tmp_path / "run.png", BLUE) == {reward, accuracy}
    assert _dots(tmp_path / "run.png", ORANGE) == {accuracy}
    assert _dots(tmp_path / "run.png", GREEN) == {length}


def test_the_stack_of_a_step_is_as_high_as_its_phases_take_seconds() -> None:
    """Latencies of rewards and the time of the whole step are no phases, and a row that has nothing else is left out."""
    others = {"time/reward_p50": 0.25, "time/reward_p99": 8.0, "time/step": 32.0}
    phases = [{"time/sync": 0.5, "time/rollout": 2.0}, {"time/rollout": 1.0, "time/update": 4.0}]
    axes = Figure().subplots()
    _draw_time(axes, [{"step": step} | others | (phases[step] if step < 2 else {}) for step in range(3)])
    drawn = [patch.get_data() for patch in axes.patches]
    assert sum(stairs.values - stairs.baseline for stairs in drawn).tolist() == [2.5, 5.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sync", "rollout", "update"]


def test_a_clock_knows_the_phases_and_no_other() -> None:
    clock = PhaseTimer(lambda _: None)
    for phase in PHASES:
        with clock(phase):
            pass
    assert set(clock.metrics()) == {f"time/{phase}" for phase in PHASES} | {"time/step"}
    with pytest.raises(ValueError, match="'reward_p50' is not a phase of a step; valid: sync, rollout"), clock("reward_p50"):
        pass
