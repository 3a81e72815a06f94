"""TensorBoard reads back what was logged, also over resumes; W&B is wanted or absent; a tracker is a line in a table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.report import Report
from rlkit.report.tensorboard import TensorBoard
from rlkit.report.trackers import TRACKERS, TrackerSettings


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_back_the_numbers_of_the_last_attempt(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, resumed=False)
    for step in range(5):
        first.log(step, {"reward": step / 8, "eval/accuracy": 0.5})
    assert _scalars(tmp_path, "reward") == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)]  # never closed: killed

    time.sleep(1.0)  # files are read in the order of their names, which begin with the second; a process never resumes itself
    second = TensorBoard(tmp_path, resumed=True)
    for step in range(3, 6):
        second.log(step, {"reward": 1 + step / 8})
    second.close()
    assert _scalars(tmp_path, "reward") == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 1.375), (4, 1.5), (5, 1.625)]
    assert _scalars(tmp_path, "eval/accuracy") == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_wandb_that_is_missing_is_told_before_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Report(tmp_path / "run", plan=[], title="t", steps=1, main=True, wandb="project")
    assert not (tmp_path / "run").exists()


class Toy:
    """Keeps what it gets in a list; fails at step 2."""

    def __init__(self, settings: TrackerSettings, seen: list[object]) -> None:
        self.seen = seen
        seen.append((settings.folder.name, settings.title, settings.attempt))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise OSError("no route to host")
        self.seen.append((step, dict(metrics)))

    def close(self) -> None:
        self.seen.append("closed")


def test_a_tracker_is_a_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It gets every step and is closed; after a failure the run continues without it; an opener that returns None opens nothing."""
    seen: list[object] = []
    monkeypatch.setitem(TRACKERS, "toy", lambda settings: Toy(settings, seen))
    monkeypatch.setitem(TRACKERS, "unwanted", lambda settings: None)
    for steps in (1, 3):
        with Report(tmp_path / "run", plan=[], title="t", steps=3, main=True) as report:
            for step in range(steps):
                report.log_step(step, {"reward": 0.5})
    first = [("run", "t", 1), (0, {"reward": 0.5}), "closed"]
    assert seen == [*first, ("run", "t", 2), (0, {"reward": 0.5}), (1, {"reward": 0.5})]
    assert "warning: toy failed and is not used any more: OSError: no route to host" in capsys.readouterr().out


WANDB_RUN = """
import sys
from pathlib import Path
from rlkit.report import Report
for first in (0, 2):  # the second resumes from step 1
    with Report(Path(sys.argv[1]), plan=[], title="t", steps=4, main=True, wandb="project", offline=True) as report:
        for step in range(first, 4):
            report.log_step(step, {"reward": step / 8})
"""


def test_wandb_offline_writes_to_the_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install rlkit[wandb]")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-c", WANDB_RUN, str(tmp_path), "judge.api_key=not-to-be-told"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "warning" not in done.stdout
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    known = (tmp_path / "wandb-id").read_text()
    assert {run.name for run in runs} == {f"run-{known}.wandb"}
    first, second = (run.read_bytes() for run in runs)
    assert b"0.125" in first
    assert b"0.125" not in second  # it logged steps 2 and 3
    assert b"0.375" in second
    assert not any(b"not-to-be-told" in file.read_bytes() for file in (tmp_path / "wandb").rglob("*") if file.is_file())
