"""status.json: a reader outside learns how a run ended, and that it is lost where its process is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.report import Report
from rlkit.report.status import RunStatus, describe_process, read_run_status, write_run_status
from rlkit.report.summary import RunSummary
from rlkit.runtime import heartbeat

WRITER = """
import sys, time
from pathlib import Path
from rlkit.report import Report
report = Report(Path(sys.argv[1]), plan=[], title="t", steps=9, main=True)
report.log_step(4, {"reward": 0.5})
report.show_phase("rollout")
print("there", file=sys.stderr, flush=True)
time.sleep(60)
"""


def read(folder: Path) -> RunStatus:
    status = read_run_status(folder)
    assert status is not None
    return status


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (Stopped("stopped after step 2 of 9, saved"), "stopped", "stopped after step 2 of 9, saved"),
        (RunFailed("too many rewards failed\nlook at them"), "failed", "RunFailed: too many rewards failed"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_the_end_of_a_run_and_why(error: Exception, state: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Report(tmp_path, plan=[], title="t", steps=9, main=True) as report:
        assert (read(tmp_path).state, read(tmp_path).step, read(tmp_path).steps) == ("running", 0, 9)
        report.log_step(2, {"reward": 0.5})
        report.show_phase("update")
        raise error
    status = read(tmp_path)
    assert (status.state, status.why, status.step, status.phase, status.attempt) == (state, why, 2, "update", 1)
    log = (tmp_path / "run.log").read_text()
    assert ("Traceback" in log) == isinstance(error, ZeroDivisionError)
    assert str(error).partition("\n")[0] in log and " ERROR   " in log and "INFO    step 2/9  reward 0.500" in log


def test_a_run_that_is_done(tmp_path: Path) -> None:
    with Report(tmp_path, plan=[], title="t", steps=2, main=True) as report:
        report.log_step(2, {"reward": 0.5})
        report.finish(RunSummary("done", 2, 1.0))
    assert (read(tmp_path).state, read(tmp_path).why, read(tmp_path).step) == ("done", None, 2)


def test_a_killed_run_is_lost(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert writer.stderr is not None and writer.stderr.readline() == "there\n"
    assert (read(tmp_path).state, read(tmp_path).step) == ("running", 4)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    status = read(tmp_path)
    assert (status.state, status.why) == ("lost", f"its process {writer.pid} is gone: killed, or out of memory")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"  # a reader writes nothing


def test_when_a_run_whose_state_is_running_is_lost(tmp_path: Path) -> None:
    now = time.time()
    alive = RunStatus("running", 9, updated=now, **describe_process())
    states = {
        "this process": alive,
        "its id, used again": replace(alive, process_started=alive.process_started - 60.0),
        "before a restart of the machine": replace(alive, boot="another"),
        "another machine, just heard": replace(alive, host="elsewhere", updated=now - 30.0),
        "another machine, silent": replace(alive, host="elsewhere", updated=now - 200.0),
        "ended, and its process is gone": replace(alive, state="stopped", pid=2**22 + 1),
    }
    seen = {}
    for name, status in states.items():
        write_run_status(tmp_path, status)
        found = read_run_status(tmp_path, now)
        assert found is not None
        seen[name] = (found.state, found.why)
    assert seen == {
        "this process": ("running", None),
        "its id, used again": ("lost", f"its process {os.getpid()} is gone: killed, or out of memory"),
        "before a restart of the machine": ("lost", "the machine was restarted"),
        "another machine, just heard": ("running", None),
        "another machine, silent": ("lost", "nothing was heard from elsewhere for 200 s"),
        "ended, and its process is gone": ("stopped", None),
    }


def test_the_heartbeat_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes the same file from a thread of its own."""
    monkeypatch.setattr("rlkit.report.progress.TICK_SECONDS", 0.0)
    monkeypatch.setattr("rlkit.report.BEAT_SECONDS", 0.0)
    steps = []
    with Report(tmp_path, plan=[], title="t", steps=400, main=True) as report:
        for step in range(1, 401):
            report.log_step(step, {"reward": 0.5})
            steps.append(read(tmp_path).step)
    assert steps == list(range(1, 401))


def test_a_phase_is_in_the_file_within_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only with the next heartbeat: what loads for minutes is seen as that."""
    monkeypatch.setattr("rlkit.report.progress.TICK_SECONDS", 0.02)
    with Report(tmp_path, plan=[], title="t", steps=9, main=True) as report:
        report.show_phase("starting vllm")
        deadline = time.monotonic() + 5.0
        while read(tmp_path).phase != "starting vllm" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (read(tmp_path).state, read(tmp_path).phase) == ("running", "starting vllm")


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    with pytest.raises(UserError, match=r"run\.log cannot be written"):
        Report(tmp_path, plan=[], title="t", steps=1, main=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "done"}', "null"])
def test_a_file_that_is_none_is_no_state(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_run_status(tmp_path) is None


def test_a_long_phase_prints_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interval once, on the console and in run.log, and a heartbeat in status.json beside it."""
    monkeypatch.setattr("rlkit.report.console._PROGRESS_SECONDS", 0.15)
    monkeypatch.setattr("rlkit.report.progress.TICK_SECONDS", 0.02)
    monkeypatch.setattr("rlkit.report.BEAT_SECONDS", 0.1)
    with Report(tmp_path, plan=[], title="t", steps=9, main=True) as report:
        heartbeat.beat("rollout", 3)
        report.show_phase("rollout")
        first = read(tmp_path).updated
        heartbeat.advance(45, 64, "samples", 4000)
        time.sleep(1.0)
        assert read(tmp_path).updated > first and read(tmp_path).phase == "rollout"
    lines = capfd.readouterr().out.splitlines()
    assert 4 <= len(lines) <= 8 and all(line.startswith("step 3/9  rollout") and "  45/64 samples  tokens/s " in line for line in lines)
    assert sum("45/64 samples" in line for line in (tmp_path / "run.log").read_text().splitlines()) >= 4
