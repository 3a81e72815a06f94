"""What a person reads: plain lines in pipes, a live line on a terminal, and nothing that a model wrote acts on either."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.report.console import Console, escape_control, format_duration, shorten
from rlkit.report.folder import read_metrics
from rlkit.report.summary import RunSummary

RUN = """
import sys
from pathlib import Path
from rlkit.report import Report, console
from rlkit.report.summary import RunSummary
console._PROGRESS_SECONDS = 1e9  # the machine may be busy
sample = {"prompt": "1 + 1 [bold]?", "completion": "[red]It is\\n\\x1b[31m\\u202e caf\\xe9 2"}
sample |= {"reward": 1.0, "rewards": {"a": 1.0}, "advantage": 0.0}
with Report(Path(sys.argv[1]), plan=[("model", "[link]tiny")], title="a run", steps=6, main=True) as report:
    report.print_header()
    report.log_step(0, {"eval/accuracy": 0.25})
    for step in range(1, 7):
        report.show_phase("rolling out")
        report.log_samples(step, [sample | {"stop": "eos", "version": step - 1}])
        report.log_step(step, {"reward": step / 8, "rewards/accuracy/mean": step / 16})
        print("printed by somebody else")
    report.warn("[blink]mind\\nthe gap")
    report.finish(RunSummary("done", 6, 61.0, 0.25, 0.75))
"""


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING")}
    return kept | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | more


def _steady(shown: str) -> str:
    return re.sub(r"^audit \w{64}\n", "", re.sub(r"eta \d+:\d+", "eta 0:01", shown), flags=re.M)  # the machine may be busy


def _in_a_pipe(folder: Path, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], env=_environment(**environment), capture_output=True, check=True)
    return _steady(done.stdout.decode())


def _on_a_terminal(folder: Path, **environment: str) -> str:
    ours, theirs = pty.openpty()
    run = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], env=_environment(**environment), stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += (block := os.read(ours, 1 << 16))
        except OSError:  # Linux: nobody holds the other end any more
            break
        if not block:
            break
    os.close(ours)
    assert run.wait() == 0, shown.decode()
    return _steady(shown.decode().replace("\r\n", "\n"))


PLAIN = """\
a run
  model  [link]tiny
step 0/6  held-out 0.250
step 1/6  reward 0.125  accuracy 0.062  eta 0:01
printed by somebody else
step 2/6  reward 0.250  accuracy 0.125  eta 0:01
printed by somebody else
step 3/6  reward 0.375  accuracy 0.188  eta 0:01
printed by somebody else
step 4/6  reward 0.500  accuracy 0.250  eta 0:01
printed by somebody else
step 5/6  reward 0.625  accuracy 0.312  eta 0:01
  sample of step 5  reward 1.000  prompt: 1 + 1 [bold]?  completion: [red]It is\\n\\x1b[31m\\u202e café 2
printed by somebody else
step 6/6  reward 0.750  accuracy 0.375
printed by somebody else
warning: [blink]mind
the gap
accuracy before 0.250  after 0.750  change +0.500
done: 6 steps in 1:01
"""


def test_a_pipe_gets_plain_lines_one_a_step(tmp_path: Path) -> None:
    assert _in_a_pipe(tmp_path, PYTHONIOENCODING="utf-8") == PLAIN + f"folder {tmp_path}\n"


@pytest.mark.parametrize("shown", [_in_a_pipe, _on_a_terminal])
def test_a_stream_that_knows_only_ascii_gets_escapes(tmp_path: Path, shown: Callable[..., str]) -> None:
    assert shown(tmp_path, PYTHONIOENCODING="ascii") == PLAIN.replace("é", r"\xe9") + f"folder {tmp_path}\n"


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_no_color_and_ci_get_plain_lines_even_on_a_terminal(tmp_path: Path, variable: str) -> None:
    shown = _on_a_terminal(tmp_path, PYTHONIOENCODING="utf-8", **{variable: "1"})
    assert shown == PLAIN + f"folder {tmp_path}\n"


def test_a_terminal_gets_a_live_line_and_completions_stay_text(tmp_path: Path) -> None:
    shown = _on_a_terminal(tmp_path, PYTHONIOENCODING="utf-8")
    assert "\r\x1b[2K" in shown  # the live line is drawn over
    assert "\x1b[31m" not in shown  # the completion's red
    assert "\u202e" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert r"1.000   1 + 1 [bold]?" in text
    assert r"[red]It is\n\x1b[31m\u202e café 2" in text
    assert "[link]tiny" in text
    assert "warning: [blink]mind\nthe gap\n" in text
    assert "step 6/6  reward 0.750  accuracy 0.375" in text
    assert re.search(r"held-out accuracy +0\.250 +0\.750 +\+0\.500", text)
    assert text.endswith(f"done: 6 steps in 1:01\nfolder {tmp_path}\n")
    assert text.count("printed by somebody else\n") == 6


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    quiet = RUN.replace('print("printed by somebody else")', "pass")  # that one is not ours to save
    done = subprocess.run(
        [sys.executable, "-c", quiet, str(tmp_path)], env=_environment(), stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(7))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"


def test_the_line_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(32, stream=stream)
    console.print_step(11, {"reward": 0.5})
    now = 102.04  # 20 steps to go: 40.8 s
    metrics = {"reward": 0.7125, "accuracy": 0.713, "rewards/accuracy/mean": 0.9, "throughput/tokens_per_second": 9119.6}
    console.print_step(12, metrics)
    assert stream.getvalue().splitlines() == [
        "step 11/32  reward 0.500",
        "step 12/32  reward 0.713  accuracy 0.713  tokens/s 9,120  eta 0:41",
    ]


def test_before_and_after_may_be_missing() -> None:
    stream = io.StringIO()
    Console(4, stream=stream).finish(RunSummary("stopped", 2, 3725.0, 0.5), Path("runs/a"))
    assert stream.getvalue() == "accuracy before 0.500  after -  change -\nstopped: 2 steps in 1:02:05\nfolder runs/a\n"


def test_the_end_shows_the_interval_and_that_nothing_was_measured() -> None:
    stream = io.StringIO()
    held_out = {"eval/accuracy": 0.75, "eval/accuracy_low": 0.5, "eval/accuracy_high": 0.875}
    Console(2, stream=stream).finish(RunSummary("done", 2, 60.0, 0.25, 0.75, held_out=held_out), Path("runs/a"))
    Console(2, stream=stream).finish(RunSummary("done", 2, 60.0), Path("runs/a"))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "accuracy before 0.250  after 0.750  change +0.500  95 % interval 0.500 to 0.875"
    assert lines[3] == "no held-out rows, so nothing was measured on them (data.test=FILE)"


def test_a_number_that_was_selected_on_its_own_rows_is_labelled_so() -> None:
    """In the lines of the console and of a terminal, and in summary.json."""
    label = "best of 9 evaluations it was selected on"
    summary = RunSummary("done", 8, 60.0, 0.5, 0.71, label=label, model_step=6, best=("accuracy", 0.71, 6, label), stopped_early="why")
    stream = io.StringIO()
    Console(8, stream=stream).finish(summary, Path("runs/a"))
    assert stream.getvalue().splitlines() == [
        "accuracy before 0.500  after 0.710 (best of 9 evaluations it was selected on)  change +0.210",
        "why",
        "held-out accuracy 0.710 after step 6 (best of 9 evaluations it was selected on); model/ has its weights",
        "done: 8 steps in 1:00",
        "folder runs/a",
    ]
    assert summary.to_json()["selected"] == {"metric": "accuracy", "value": 0.71, "step": 6, "label": label, "model_step": 6}
    kept = replace(summary, label="", model_step=8, stopped_early=None).describe_selection()
    assert kept == [f"held-out accuracy 0.710 after step 6 ({label}); rlkit export RUN step=best, where it was kept"]


def test_a_quiet_console_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(4, quiet=True)
    console.print_header("t", [("a", "b")])
    console.print_step(1, {"reward": 1.0})
    console.warn("w")
    console.finish(RunSummary("done", 1, 1.0, 0.0, 1.0), Path("f"))
    assert capfd.readouterr() == ("", "")


def test_text_is_shown_and_cut() -> None:
    assert escape_control("a\tb\x1b[1mc\x9b\u2028\ud800 é") == r"a\tb\x1b[1mc\x9b\u2028\ud800 é"
    assert shorten("0123456789", 10) == "0123456789"
    assert shorten("0123456789x", 10) == "012…56789x"
    assert len(shorten("x" * 500, 60)) == 60
    assert [format_duration(0), format_duration(41), format_duration(59.2), format_duration(725), format_duration(3723)] == [
        "0:00",
        "0:41",
        "1:00",
        "12:05",
        "1:02:03",
    ]
