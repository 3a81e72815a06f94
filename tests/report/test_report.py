"""The whole report of a run: one row a step, every sample, a summary, and nothing on other ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.report import EarlyHeader, Report
from rlkit.report.folder import read_metrics, read_rows
from rlkit.report.summary import RunSummary


def _sample(reward: float | None, text: str = "") -> dict[str, Any]:
    return {"prompt": "p", "completion": text, "reward": reward, "rewards": {"a": reward}, "advantage": 0.5, "stop": "eos", "version": 3}


def _report(folder: Path, main: bool = True) -> Report:
    return Report(folder, plan=[("model", "tiny")], title="t", steps=2, main=main, table_every=2)


def test_a_run_leaves_its_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = time.time() - 0.001  # rounded to milliseconds
    samples = [_sample(reward, f"r{reward}") for reward in (0.5, None, 0.0, 1.0, 0.25)]
    with _report(tmp_path) as report:
        assert report.attempt == 1
        report.print_header()
        report.write_text("recipe.yaml", "seed: 0\n")
        report.log_step(0, {"eval/accuracy": 0.25})
        report.log_samples(1, samples)
        report.log_step(1, {"reward": 0.5, "floor/update": 3.0})
        report.log_samples(2, samples)
        report.log_step(2, {"reward": 0.75, "eval/accuracy": 0.5, "floor/update": 2.0})
        report.finish(RunSummary("done", 2, 12.5, 0.25, 0.5))

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    clocks = [row.pop("time/clock") for row in rows]
    assert before <= clocks[0] <= clocks[1] <= clocks[2] <= time.time()
    assert rows == [
        {"step": 0, "attempt": 1, "eval/accuracy": 0.25},
        {"step": 1, "attempt": 1, "reward": 0.5, "floor/update": 3.0},
        {"step": 2, "attempt": 1, "reward": 0.75, "eval/accuracy": 0.5, "floor/update": 2.0},
    ]
    assert read_rows(tmp_path / "samples.jsonl") == [{"step": step, "attempt": 1} | sample for step in (1, 2) for sample in samples]
    summary = {"status": "done", "steps": 2, "wall_seconds": 12.5, "accuracy_before": 0.25, "accuracy_after": 0.5}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "environment.json").read_text())["versions"]["rlkit"] == "0.1.0"
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 0\n"
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1
    lines = capfd.readouterr().out.splitlines()
    shown = [line for line in lines if "sample of step" in line]
    assert [line.rsplit(" ", 1)[1] for line in shown] == ["r1.0", "r0.25", "rNone"]  # of step 2 alone: best, middle, last
    assert [line for line in lines if "roofline" in line] == ["  roofline of step 2  update 2.0x", "roofline  update 2.5x"]


def test_other_ranks_touch_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _report(tmp_path / "run", main=False) as report:
        report.print_header()
        report.show_phase("rollout")
        report.log_samples(1, [_sample(1.0)])
        report.log_step(1, {"reward": 1.0})
        report.write_json("a.json", {})
        report.note("n")
        report.warn("w")
        report.finish(RunSummary("done", 1, 1.0, 0.0, 1.0))
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_a_failing_picture_or_tracker_is_told_once_and_the_run_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file in the way")
    (tmp_path / "report.png").mkdir()
    with _report(tmp_path) as report:
        report.log_step(1, {"reward": 0.5})
        report.log_step(2, {"reward": 0.5})
        report.finish(RunSummary("done", 2, 1.0))
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(" failed")[0] for line in lines if line.startswith("warning")] == ["warning: TensorBoard", "warning: report.png"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy_after"] is None


def test_an_exception_leaves_the_files_whole_and_a_resume_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _report(tmp_path) as report:
        report.log_step(1, {"reward": 0.5})
        raise KeyboardInterrupt
    report.close()  # a second time
    with _report(tmp_path) as report:
        assert report.attempt == 2
        report.log_step(2, {"reward": 0.75})
    assert [(row["step"], row["attempt"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("error", "state"), [(None, "done"), (Stopped("stopped after step 1 of 2"), "stopped"), (RunFailed("the reward is gone"), "failed")]
)
def test_the_page_is_written_however_a_run_ends(tmp_path: Path, error: Exception | None, state: str) -> None:
    report = _report(tmp_path)
    report.log_samples(1, [_sample(1.0, "</script>")])
    report.log_step(1, {"reward": 0.5})
    if error is None:
        report.finish(RunSummary("done", 1, 1.0))
    report.close(error)
    data = (tmp_path / "report.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    document = json.loads(data)
    run = document["run"]["run"]
    assert (run["state"], str(error or "None").split(": ")[-1] in str(run["why"])) == (state, True)
    assert document["run"]["columns"]["reward"] == [0.5] and document["samples"]["1"]["samples"][0]["completion"] == "</script>"


def test_the_header_comes_first_and_what_is_known_later_below_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line once on the console, with the progress of the work between; all of the plan in run.log."""
    monkeypatch.setattr("rlkit.report.console._PROGRESS_SECONDS", 0.05)
    monkeypatch.setattr("rlkit.report.progress.TICK_SECONDS", 0.02)
    with EarlyHeader("a run", [("model", "tiny"), ("steps", "2 times the rows")], main=True) as header:
        assert capfd.readouterr().out == "a run\n  model  tiny\n  steps  2 times the rows\n"
        assert not list(tmp_path.iterdir())
        header.show_phase("reading rows")
        time.sleep(0.4)
        plan = [("model", "tiny"), ("steps", "14"), ("folder", str(tmp_path))]
        with Report(tmp_path, plan=plan, title="a run", steps=14, main=True, header=header) as report:
            report.print_header()
            report.log_step(1, {"reward": 0.5})
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("step 0/14")]  # progress of the report itself
    progress = [line for line in lines if line.startswith("reading rows")]
    assert progress and lines[len(progress) : len(progress) + 2] == ["  steps  14", f"  folder  {tmp_path}"]
    assert lines[len(progress) + 2].startswith("step 1/14  reward 0.500") and "a run" not in lines
    log = [line.split("INFO    ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert log[:4] == ["a run", "  model   tiny", "  steps   14", f"  folder  {tmp_path}"]
    with EarlyHeader("a run", plan, main=False) as silent:
        silent.show_phase("reading rows")
        Report(tmp_path / "other", plan=plan, title="a run", steps=14, main=False, header=silent).print_header()
    assert capfd.readouterr().out == ""


def test_a_refusal_before_the_folder_ends_the_progress(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.report.console._PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("rlkit.report.progress.TICK_SECONDS", 0.01)
    with pytest.raises(UserError), EarlyHeader("a run", [], main=True):
        raise UserError("no such model")
    capfd.readouterr()
    time.sleep(0.1)
    assert capfd.readouterr().out == ""
