"""TensorBoard reads back what was logged, also over resumes; a package may be absent; a tracker is a line in a table that learns the end.

test_watched_run.py reads what a real run wrote for W&B and MLflow; SwanLab and Trackio are tested where they are installed.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlkit.config.sections import ReportSection
from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.report import Report
from rlkit.report.summary import RunSummary
from rlkit.report.tensorboard import TensorBoard
from rlkit.report.tracker import TrackerSettings
from rlkit.report.trackers import ALWAYS, TRACKERS, TrackerKind


def _open_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in _open_events(folder).Scalars(name)]


def test_tensorboard_reads_back_the_numbers_of_the_last_attempt(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, {"seed": 3}, resumed=False)
    for step in range(5):
        first.log(step, {"reward": step / 8, "eval/accuracy": 0.5})
    assert _scalars(tmp_path / "tensorboard", "reward") == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)]  # never closed: killed

    time.sleep(1.0)  # files are read in the order of their names, which begin with the second; a process never resumes itself
    second = TensorBoard(tmp_path, {"seed": 3}, resumed=True)
    for step in range(3, 6):
        second.log(step, {"reward": 1 + step / 8})
    second.close("done")
    assert _scalars(tmp_path / "tensorboard", "reward") == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 1.375), (4, 1.5), (5, 1.625)]
    (text,) = _open_events(tmp_path / "tensorboard").Tensors("recipe/text_summary")
    assert b'"seed": 3' in text.tensor_proto.string_val[0]
    assert _scalars(tmp_path / "tensorboard", "eval/accuracy") == [(0, 0.5), (1, 0.5), (2, 0.5)]


@pytest.mark.parametrize(
    ("key", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("swanlab", "swanlab"), ("trackio", "trackio")]
)
def test_a_package_that_is_missing_is_told_before_a_folder_is_made(
    key: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, key, None)
    wanted = TrackerSettings(projects={key: "project"})
    with pytest.raises(UserError, match=f"report.{key} needs the package {key}: pip install {package}, or set report.{key}=null"):
        Report(tmp_path / "run", plan=[], title="t", steps=1, main=True, trackers=wanted)
    assert not (tmp_path / "run").exists()


class Toy:
    """Keeps what it gets in a list; fails at step 2."""

    def __init__(self, settings: TrackerSettings, project: str, seen: list[object]) -> None:
        self.seen = seen
        seen.append((settings.folder.name, settings.name, settings.attempt, project))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise OSError("no route to host")
        self.seen.append((step, dict(metrics)))

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self.seen.append((step, [sample["completion"] for sample in samples]))

    def close(self, state: str) -> None:
        self.seen.append(state)


def open_report(folder: Path, seen: list[object], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Report:
    kind = TrackerKind("toy", lambda offline: seen.append(f"required, offline={offline}"), lambda s, project: Toy(s, project, seen))
    monkeypatch.setitem(TRACKERS, "toy", kind)
    wanted = TrackerSettings(name="t-seed0", projects={"toy": "sums"}, **settings)
    return Report(folder, plan=[], title="t", steps=3, main=True, trackers=wanted, table_every=2)


def test_a_tracker_is_a_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It gets every step and is closed; after a failure the run continues without it."""
    seen: list[object] = []
    for steps in (1, 3):
        with open_report(tmp_path / "run", seen, monkeypatch) as report:
            for step in range(steps):
                report.log_samples(step, [{"completion": "no"}])  # not asked for: nobody else gets it
                report.log_step(step, {"reward": 0.5})
    begun = "required, offline=False"
    first = [begun, ("run", "t-seed0", 1, "sums"), (0, {"reward": 0.5}), "stopped"]
    assert seen == [*first, begun, ("run", "t-seed0", 2, "sums"), (0, {"reward": 0.5}), (1, {"reward": 0.5})]
    assert "warning: toy failed and is not used any more: OSError: no route to host" in capsys.readouterr().out
    assert ALWAYS.keys() <= TRACKERS.keys() and set(TRACKERS) - {"toy", *ALWAYS} == set(ReportSection.model_fields) & set(TRACKERS)


@pytest.mark.parametrize(
    ("error", "state"), [(Stopped("saved"), "stopped"), (RunFailed("disk"), "failed"), (KeyError("x"), "failed"), (None, "done")]
)
def test_a_tracker_learns_how_the_run_ended(error: Exception | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    with suppress(Stopped, RunFailed, KeyError), open_report(tmp_path, seen, monkeypatch) as report:
        if error:
            raise error
        report.finish(RunSummary("done", 0, 1.0))
    assert seen[-1] == state


def test_samples_go_to_trackers_where_it_is_allowed_and_when_tables_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    with open_report(tmp_path, seen, monkeypatch, upload_samples=True) as report:
        for step in (0, 1, 4):
            report.log_samples(step, [{"completion": f"c{step}"}, {"completion": "d"}])
    assert seen[2:] == [(0, ["c0", "d"]), (4, ["c4", "d"]), "stopped"]


RESUMED = """
import signal, sys
from pathlib import Path
from rlkit.report import Report
from rlkit.report.tracker import TrackerSettings
handler = signal.getsignal(signal.SIGINT)
projects = dict.fromkeys(sys.argv[2].split(), "sums")
settings = TrackerSettings(name="t-seed0", group="g", tags=("a",), config={"seed": 0}, offline=True, projects=projects, upload_samples=True)
for first in (0, 2):  # the second resumes from step 1
    with Report(Path(sys.argv[1]), plan=[], title="t", steps=4, main=True, trackers=settings) as report:
        for step in range(first, 4):
            report.log_samples(step, [{"split": "train", "completion": f"wrote {step}", "rewards": {"a": 1.0}, "advantage": None}])
            report.log_step(step, {"reward": step / 8, "eval/pass@2": 0.5})
assert signal.getsignal(signal.SIGINT) is handler
"""
SERVER = "http://127.0.0.1:9"
ASKED = {
    "WANDB_MODE": "online",
    "WANDB_BASE_URL": SERVER,
    "MLFLOW_TRACKING_URI": SERVER,
    "SWANLAB_MODE": "cloud",
    "TRACKIO_SERVER_URL": SERVER,
}


def resume_offline(folder: Path, *keys: str) -> Path:
    """Two attempts of a run, offline, where the environment names servers. Returns its folder, beside which they leave nothing."""
    for key in keys:
        pytest.importorskip(key, reason=f"{key} is not installed: pip install rlkit[{key}]")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "SWANLAB", "TRACKIO"))}
    home = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder / "home"), **ASKED}
    (folder / "home").mkdir()
    command = [sys.executable, "-c", RESUMED, str(folder / "run"), " ".join(keys), "judge.api_key=not-to-be-told"]
    done = subprocess.run(command, env=own | home, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == "" and not any(word in done.stdout.lower() for word in ("warning", *keys))
    assert sorted(os.listdir(folder)) == ["home", "run"]
    assert not any(b"not-to-be-told" in file.read_bytes() for file in (folder / "run").rglob("*") if file.is_file())
    return folder / "run"


def test_wandb_and_mlflow_go_on_with_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resume_offline(tmp_path, "wandb", "mlflow")
    runs = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    known = (folder / "wandb-id").read_text()
    assert {run.name for run in runs} == {f"run-{known}.wandb"}
    first, second = (run.read_bytes() for run in runs)
    assert b"0.125" in first
    assert b"0.125" not in second  # it logged steps 2 and 3
    assert b"0.375" in second

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    client = mlflow.MlflowClient((folder / "mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("sums").experiment_id])
    assert (found.info.status, found.info.run_id) == ("KILLED", (folder / "mlflow-id").read_text())
    assert [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, "reward")] == [(s, s / 8) for s in (0, 1, 2, 3, 2, 3)]
    assert found.data.metrics["eval/pass_at_2"] == 0.5
    assert [file.path for file in client.list_artifacts(found.info.run_id, "samples")] == ["samples/attempt-1"]


def test_swanlab_offline_writes_to_the_folder_alone(tmp_path: Path) -> None:
    folder = resume_offline(tmp_path, "swanlab")
    runs = list((folder / "swanlab").glob("run-*/*.swanlab"))
    assert len(runs) == 2 and all(b"reward" in file.read_bytes() for file in runs)
    assert any("wrote 0" in file.read_text() for file in (folder / "swanlab").rglob("*.json"))


def test_trackio_offline_writes_to_the_folder_alone(tmp_path: Path) -> None:
    folder = resume_offline(tmp_path, "trackio")
    with sqlite3.connect(folder / "trackio" / "sums.db") as base:
        logged = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in logged} == {"t-seed0-run"}
    assert sorted(step for _, step, values in logged if b'"reward":' in values) == [0, 1, 2, 2, 3, 3]
    assert any(b"wrote 0" in values for _, _, values in logged)
