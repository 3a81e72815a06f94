"""The table of a session on a GPU, in the form that a CPU can run: every row says so, and no check can end it."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlkit.engines import packing
from tests import conftest
from tests.gpu import __main__ as door
from tests.gpu import kernels, runs, table
from tests.gpu.checks import CHECKS, PARTS, select

QUICK = ("machine", "attention", "head", "parking")  # without a run
RUNS = ("mismatch", "memory", "lora")  # the others start processes that no test can fork, or as many more runs


def test_the_table_takes_30_minutes_and_a_part_10(capsys: pytest.CaptureFixture[str]) -> None:
    spent = Counter[str]()
    for check in CHECKS.values():
        spent[check.part] += check.seconds
    assert set(spent) == set(PARTS) and max(spent.values()) <= 600 and spent.total() <= 1800
    assert {check.number.rstrip("abc") for check in CHECKS.values()} == set("123456789")
    assert [check.name for check in select(["part2"])] == ["memory", "mfu"] and len(select([])) == len(CHECKS)
    assert door.main(["--list"]) == 0 and all(name in capsys.readouterr().out for name in ("attention ",))
    assert door.main(["atention", "--list"]) == 2 and "there is no check or part atention; checks: machine" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUICK)
def test_a_check_of_kernels_runs_on_a_cpu(name: str, tmp_path: Path) -> None:
    measured = CHECKS[name].run(True, tmp_path)
    assert measured.passed, measured


def test_attention_without_its_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 alone, as a wrong kernel would be."""
    attend = packing.attend_per_run

    def wrong(query: Any, key: Any, value: Any, seq_lens: Any, scaling: float, window: int | None) -> Any:
        return attend(query, key, value, seq_lens, scaling, window if query.dtype.itemsize == 4 else None)

    monkeypatch.setattr(packing, "attend_per_run", wrong)
    measured = CHECKS["attention"].run(True, tmp_path)
    assert not measured.passed and float(measured.figures["output"]) > 0.1


def test_a_head_that_rounds_its_logits_away_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.ops_logprobs.logprobs_from_hidden
    monkeypatch.setattr(kernels.ops_logprobs, "logprobs_from_hidden", lambda hidden, *given: right((hidden * 4).round() / 4, *given))
    assert not CHECKS["head"].run(True, tmp_path).passed


def test_what_has_no_kernel_here_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(table.NotRunError, match="on Hopper alone"):
        CHECKS["liger"].run(True, tmp_path)


def write_program(folder: Path, line: str) -> str:
    """A program that stands in for the Python of a check."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("line", "outcome", "why"),
    [
        ("echo before; kill -SEGV $$", "failed", "ended with -11: before"),
        ("sleep 60 & sleep 60", "failed", "not ended after 1 s"),
        ("echo 'ValueError: nothing'; exit 1", "failed", "ValueError: nothing"),
        ("echo 'needs a GPU'; exit 3", "not run", "needs a GPU"),
        ("""echo '{"figures": {"a": 2.0}, "bound": "a < 1", "passed": false}'""", "failed", None),
    ],
)
def test_a_check_that_ends_badly_is_one_row(
    line: str, outcome: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PATIENCE", 1)
    monkeypatch.setattr(door.sys, "executable", write_program(tmp_path, line))
    check = door.Check("1", "machine", CHECKS["machine"].run, "part1", 1, "")
    begun = time.monotonic()
    row = door.run_check(check, True, tmp_path)
    assert time.monotonic() - begun < 20 and (row.outcome, row.form) == (outcome, "CPU")
    assert row.figures == ({"a": 2.0} if why is None else {"why": why})


def test_later_calls_add_rows_and_run_what_failed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_check(check: door.Check, small: bool, folder: Path) -> table.Row:
        ran.append(check.name)
        return table.Row(check.number, check.name, {"a": 1.5}, "a | b", "failed" if check.name == "mfu" else "passed", "CPU", 1.0)

    monkeypatch.setattr(door, "run_check", run_check)
    words = ["--cpu", "--out", str(tmp_path)]
    assert door.main(["machine", *words]) == 0 and door.main(["part2", *words]) == 1
    assert door.main(["part2", "machine", *words]) == 1
    assert ran == ["machine", "memory", "mfu", "machine", "mfu"]  # a name runs again, and what has failed
    text = (tmp_path / "table.md").read_text()
    assert text.count("Command: `python -m tests.gpu") == 3 and "Rows of the form CPU ran small" in text
    assert [line.split(" | ")[1] for line in text.splitlines() if " | CPU | " in line] == ["machine", "memory", "mfu"]
    assert "| 1 | machine | a 1.5 | a / b | passed | CPU | 1.0 |" in text
    file = tmp_path / "table.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "NVIDIA H200"}))
    assert door.main(["machine", *words]) == 2  # of another machine


def run_in_a_fork(words: list[str], out: Path) -> runs.Rows:
    shutil.rmtree(out, ignore_errors=True)
    done = conftest.run(*words, f"output_dir={out}")
    assert done.code == 0, done.out + done.err
    return runs.read_steps(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_check_with_a_run_passes_on_a_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "run", run_in_a_fork)
    measured = CHECKS[name].run(True, tmp_path)
    assert measured.passed, measured


@pytest.mark.nightly(part="matrices")
@pytest.mark.timeout(1900)
def test_the_whole_table_in_small(tmp_path: Path) -> None:
    assert door.main(["--cpu", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {name: row["outcome"] for name, row in rows.items()} == dict.fromkeys(CHECKS, "passed") | {"liger": "not run"}
