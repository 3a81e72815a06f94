"""report.png shows what there is, and a run without rows has one too."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rlkit.report import Report
from rlkit.report.names import PHASE_COLORS
from rlkit.report.picture import _draw_evaluation_time, _draw_panel, _draw_time, choose_panels, draw_report
from rlkit.report.summary import RunSummary
from rlkit.runtime.timer import PHASES, PhaseTimer

WIDTH, HEIGHT = 1210, 825
BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)  # train, held-out, length
STEPS: list[dict[str, Any]] = [
    {"step": 0, "attempt": 1, "eval/accuracy": 0.25, "eval/accuracy_low": 0.2, "eval/accuracy_high": 0.4, "time/evaluation": 0.5},
    {
        "step": 1,
        "attempt": 1,
        "reward": 0.5,
        "reward_std": 0.1,
        "rewards/accuracy/mean": 0.5,
        "completions/mean_length": 60.0,
        "time/rollout": 2.0,
    },
    {"step": 2, "attempt": 1, "reward": None, "not_finite": {"reward": "nan"}, "time/rollout": 2.0, "time/step": 3.0},
    {"step": 3, "attempt": 1, "reward": 0.75, "reward_std": 0.1, "completions/mean_length": 70.0, "eval/accuracy": 0.5, "time/sync": 1.0},
]


def _dots(path: Path, color: tuple[int, int, int]) -> set[tuple[int, int]]:
    """The ninths of the picture (row, column) in which this exact colour is drawn, the legends of the time of a step aside."""
    image = matplotlib.image.imread(path)  # [height, width, RGBA] from 0 to 1
    where = ((image[..., :3] * 255).round().astype(int) == color).all(-1).nonzero()
    places = {(int(row * 3 // HEIGHT), int(column * 3 // WIDTH)) for row, column in zip(*where, strict=True)}
    return {(row, column) for row, column in places if row < 2 or column == 2}


@pytest.mark.parametrize("rows", [[], STEPS[:1], STEPS[1:2], STEPS[1:]], ids=["none", "evaluation", "one step", "three steps"])
def test_any_number_of_rows_makes_a_png(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    draw_report(rows, tmp_path / "report.png", "$\\frac{", "a name of a folder is no formula: $_{$")
    data = (tmp_path / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (WIDTH, HEIGHT)
    assert data[-8:-4] == b"IEND"
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]


def test_curves_are_where_their_numbers_are(tmp_path: Path) -> None:
    reward, accuracy, length = (0, 0), (0, 1), (0, 2)
    draw_report([], tmp_path / "empty.png")
    assert _dots(tmp_path / "empty.png", BLUE) == _dots(tmp_path / "empty.png", ORANGE) == set()
    draw_report(STEPS, tmp_path / "run.png")
    assert _dots(tmp_path / "run.png", BLUE) == {reward, accuracy}
    assert _dots(tmp_path / "run.png", ORANGE) == {accuracy}
    assert _dots(tmp_path / "run.png", GREEN) == {length}


ONLINE = {"reward": 0.5, "eval/accuracy": 0.5, "completions/mean_length": 9.0, "grad_norm": 1.0, "entropy": 0.5, "clip_ratio/low_mean": 0.1}
OFFLINE = {"loss": 0.5, "rewards/accuracies": 0.5, "rewards/margins": 1.0, "grad_norm": 1.0, "learning_rate": 1e-6}


@pytest.mark.parametrize(
    ("row", "titles"),
    [
        (ONLINE, ["Reward", "Accuracy", "Completion length", "Gradient norm", "Entropy", "Health"]),
        (ONLINE | {"kl": 0.1, "loss": 1.0}, ["Reward", "Accuracy", "Completion length", "KL to the start", "Entropy", "Health"]),
        (OFFLINE, ["Loss", "Accuracy", "Reward margin", "Gradient norm", "Learning rate"]),
        ({"loss": 0.5, "throughput/tokens_per_second": 9.0}, ["Loss", "Speed"]),
        ({}, ["Reward", "Accuracy", "Completion length"]),
    ],
)
def test_a_run_has_the_panels_that_it_has_numbers_for(row: dict[str, float], titles: list[str]) -> None:
    assert [panel.title for panel in choose_panels([{"step": 1, "kl": None}, {"step": 2} | row])] == titles


def test_an_evaluation_is_drawn_with_its_interval() -> None:
    rows = [{"step": step, "eval/accuracy": 0.5, "eval/accuracy_low": 0.4, "eval/accuracy_high": 0.7} for step in (0, 4)]
    accuracy = choose_panels(rows)[0]
    for count in (1, 2):
        axes = Figure().subplots()
        _draw_panel(axes, accuracy, rows[:count])
        heights = np.concatenate([path.vertices[:, 1] for drawn in axes.collections for path in drawn.get_paths() if len(path.vertices)])
        assert (heights.min(), heights.max()) == (0.4, 0.7)


def test_the_stack_of_a_step_is_as_high_as_its_phases_take_seconds() -> None:
    """Latencies of rewards and the time of the whole step are no phases, an evaluation is drawn apart, and colours are those of names."""
    others = {"time/reward_p50": 0.25, "time/reward_p99": 8.0, "time/step": 32.0, "time/evaluation": 16.0}
    phases = [{"time/sync": 0.5, "time/rollout": 2.0}, {"time/rollout": 1.0, "time/update": 4.0}]
    rows = [{"step": step} | others | (phases[step] if step < 2 else {}) for step in range(3)]
    axes, evaluations = Figure().subplots(2)
    _draw_time(axes, rows)
    paths = [areas.get_paths()[0] for areas in axes.collections]
    for step, height in ((0, 2.5), (1, 5.0)):
        below, above = (any(path.contains_point((step, height + more)) for path in paths) for more in (-0.01, 0.01))
        assert (below, above) == (True, False)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["sync", "rollout", "update"]
    assert [to_hex(areas.get_facecolor()[0]) for areas in axes.collections] == [PHASE_COLORS[name].lower() for name in names]
    _draw_evaluation_time(evaluations, rows)
    assert [segment.tolist() for segment in evaluations.collections[0].get_segments()] == [[[s, 0.0], [s, 16.0]] for s in range(3)]


def test_the_picture_says_which_run_it_is_and_what_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr("rlkit.report.picture.draw_report", lambda rows, path, *texts: drawn.append(texts))
    with Report(tmp_path, plan=[("model", "a/b\u202e, 1.0 M")], title="grpo_math", steps=2, main=True) as report:
        report.finish(RunSummary("done", 2, 61.0, 0.25, 0.5, label="best of 3"))
    [(title, result)] = drawn
    assert title == "grpo_math · a/b\\u202e, 1.0 M"
    assert result[:3] == "202" and result.endswith("2 steps in 1:01 · held-out accuracy 0.250 before, 0.500 after (best of 3)")


def test_a_clock_knows_the_phases_and_no_other() -> None:
    assert list(PHASE_COLORS) == list(PHASES) and len(set(PHASE_COLORS.values())) == len(PHASES)
    clock = PhaseTimer(lambda _: None)
    for phase in PHASES:
        with clock(phase):
            pass
    assert set(clock.metrics()) == {f"time/{phase}" for phase in PHASES} | {"time/step"}
    with pytest.raises(ValueError, match="'reward_p50' is not a phase of a step; valid: sync, rollout"), clock("reward_p50"):
        pass
