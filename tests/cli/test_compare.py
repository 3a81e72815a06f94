"""rlkit compare, and the table at the end of --multirun: what they read from the folders of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit.cli import compare
from rlkit.cli.multirun import FinishedJob, format_sweep, read_job_result
from rlkit.report.folder import METRICS, RunFolder
from rlkit.report.status import RunStatus, write_run_status
from tests.cli.conftest import call


def write_run(folder: Path, *, done: bool = True, accuracy: tuple[float, ...] = (0.25, 0.75, 0.5), **recipe: Any) -> Path:
    """A run of three steps with an evaluation before and after the first two."""
    written = RunFolder(folder)
    for step, (value, seconds) in enumerate(zip((*accuracy, None), (9.0, 1.0, 2.0, 6.0), strict=True)):
        row = {"time/step": seconds, "throughput/tokens_per_second": 1000 * seconds}
        held_out = (
            {"eval/accuracy": value, "eval/accuracy_low": value - 0.1, "eval/accuracy_high": value + 0.1} if value is not None else {}
        )
        written.append_metrics(step, row | held_out | ({"reward": step / 8} if step else {}))
    written.write_text("recipe.yaml", yaml.safe_dump({"recipe": "mine", "steps": 3, "output_dir": str(folder), **recipe}))
    write_run_status(folder, RunStatus("done" if done else "stopped", 3))
    written.close()
    return folder


def test_it_shows_what_differs_and_what_came_of_it(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", seed=0, optim={"lr": 0.1, "betas": [0.9, 0.95]})
    b = write_run(tmp_path / "b", done=False, seed=0, optim={"lr": 0.2, "betas": [0.9, 0.95]}, data={"chat": True})
    code, out, err = call("compare", str(a), str(b))
    assert (code, err) == (0, "")
    lines = [line.split("  ") for line in out.splitlines()]
    table = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert table["1"] == [str(a)] and table["2"] == [str(b)]
    assert {key: table[key] for key in ("optim.lr", "data.chat", "state", "steps")} == {
        "optim.lr": ["0.1", "0.2"],
        "data.chat": ["-", "true"],
        "state": ["done", "stopped"],
        "steps": ["3 of 3"] * 2,
    }
    assert "seed" not in table and "output_dir" not in table
    assert table["first"] == ["0.250 [0.150, 0.350]"] * 2
    assert table["best"] == ["0.750 [0.650, 0.850]"] * 2 and table["best after step"] == ["1"] * 2
    assert table["last"] == ["0.500 [0.400, 0.600]"] * 2 and table["reward"] == ["0.375"] * 2
    assert table["seconds a step"] == ["2.00"] * 2 and table["tokens/s"] == ["2,000"] * 2  # medians without the step before training


def test_as_json_a_folder_of_several_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"seed={seed}", seed=seed)
    code, out, _ = call("compare", str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 0 and found["differences"] == {"seed": [0, 1]}
    assert [run["folder"] for run in found["runs"]] == [str(tmp_path / "seed=0"), str(tmp_path / "seed=1")]
    assert found["runs"][0]["held_out"]["best"] == {"step": 1, "value": 0.75, "low": 0.65, "high": 0.85}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    code, out, err = call("compare", str(tmp_path), "--json")
    assert (code, out) == (2, "") and f"{tmp_path} is not the folder of a run: it has no recipe.yaml" in err
    damaged = write_run(tmp_path / "damaged")
    (damaged / METRICS).write_text("{\n")
    code, out, err = call("compare", str(damaged))
    assert (code, out) == (2, "") and "line 1 is not a JSON object" in err


def test_what_a_file_holds_is_text_on_a_terminal(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, note=f"\x1b[2J{name}") for name in "ab"]
    code, out, _ = call("compare", *map(str, runs))
    assert code == 0 and r"\x1b[2Ja" in out and "\x1b" not in out


def test_a_table_of_many_runs_is_split_by_columns() -> None:
    lines = [["", "1", "2", "3"], ["lr", "aaaa", "bbbb", "cccc"]]
    assert compare.split_columns(lines, 14) == [[["", "1", "2"], ["lr", "aaaa", "bbbb"]], [["", "3"], ["lr", "cccc"]]]
    assert compare.split_columns(lines, 3) == [[["", str(n)], ["lr", 4 * letter]] for n, letter in zip((1, 2, 3), "abc", strict=True)]


def test_a_sweep_ends_with_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    """0.5 and 0.7: mean 0.6, deviation 0.1 x sqrt(2); a job that failed counts in neither."""
    finished = []
    for lr, seed, last in (("1", "0", 0.5), ("1", "1", 0.7), ("2", "0", 0.9), ("2", "1", None)):
        folder = tmp_path / f"{lr}-{seed}"
        if last is not None:
            write_run(folder, accuracy=(0.1, 0.2, last))
        finished.append(FinishedJob({"optim.lr": lr, "seed": seed}, 0 if last else 1, read_job_result(folder)))
    table, spread = (part.splitlines() for part in format_sweep(finished).split("\n\n"))
    assert [line.split()[:5] for line in table[1:]] == [
        ["1", "0", "done", "3", "of"],
        ["1", "1", "done", "3", "of"],
        ["2", "0", "done", "3", "of"],
        ["2", "1", "failed", "-", "-"],
    ]
    assert spread[0] == "mean and standard deviation over seeds"
    assert [line.split()[:5] for line in spread[2:]] == [["1", "2", "0.600", "±", "0.141"], ["2", "1", "0.900", "0.375"]]
    assert "seeds" not in format_sweep(finished[::2])


@pytest.mark.parametrize("words", [("compare",), ("compare", "/nowhere")])
def test_a_comparison_without_runs_is_refused(words: tuple[str, ...]) -> None:
    assert call(*words)[0] == 2
