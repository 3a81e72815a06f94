"""What the page is given: samples by step, curves, notes on health; each is what the files say, however they are read."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rlkit.report.bounded_read import ReadBudget
from rlkit.report.folder import METRICS, SAMPLES, SAMPLES_INDEX, RunFolder, read_metrics, read_rows
from rlkit.report.names import PHASE_COLORS
from rlkit.report.page import health
from rlkit.report.page.curves import Curves
from rlkit.report.page.runs import RunBoard, RunView, format_page_json
from rlkit.report.samples import SampleIndex, read_step_samples
from rlkit.report.status import STATUS
from tests.conftest import ROOT
from tests.report.page.demo_runs import HOSTILE, write_demo_run
from tests.report.test_metrics_page import find_name, page


def write_attempts(folder: Path, *, indexed: int | None) -> dict[int, list[str]]:
    """Two attempts, the second from step 3 on, and what counts of them. indexed: how many appends the index has, None for all."""
    blocks = []
    for steps in (range(1, 6), range(3, 5)):
        written = RunFolder(folder)
        for step in steps:
            start = (folder / SAMPLES).stat().st_size
            for part in "ab":
                written.append_samples(step, [{"completion": f"{written.attempt}.{step}{part}{n}" * 40} for n in range(3)])
            written.append_metrics(step, {"reward": step / written.attempt, "kl": float("nan")} | ({"late": 1} if step == 4 else {}))
            end = (folder / SAMPLES).stat().st_size
            blocks.append({"step": step, "attempt": written.attempt, "offset": start, "bytes": end - start, "rows": 6})
        written.close()
    (folder / SAMPLES_INDEX).write_text("".join(json.dumps(block) + "\n" for block in blocks[:indexed]))
    expected: dict[int, list[str]] = {}
    for row in read_rows(folder / SAMPLES):
        expected.setdefault(row["step"], []).append(row["completion"])
    return expected


def read_all(index: SampleIndex, step: int, budget: int | None) -> list[Any]:
    found, cursor = [], 0
    while cursor is not None:
        rows, cursor = index.read_page(step, cursor, ReadBudget(budget))  # type: ignore[assignment]
        found += [row.get("completion") for row in rows]
    return found


@pytest.mark.parametrize("budget", [None, 700])
@pytest.mark.parametrize("indexed", [None, 0, 2, 6])
def test_samples_are_those_of_the_attempts_that_count(tmp_path: Path, indexed: int | None, budget: int | None) -> None:
    """With an index, without one, and with one that ends early; in one piece and in pieces of 700 bytes."""
    expected = write_attempts(tmp_path, indexed=indexed)
    index = SampleIndex(tmp_path)
    for _ in range(100):
        if index.advance(ReadBudget(budget)):
            break
    assert index.count_rows() == {step: len(texts) for step, texts in expected.items()} == {1: 6, 2: 6, 3: 6, 4: 6}
    assert {step: read_all(index, step, budget) for step in index.steps} == expected
    assert {step: [row["completion"] for row in read_step_samples(tmp_path, step)] for step in index.steps} == expected


def test_samples_that_are_appended_are_found_and_an_unfinished_line_waits(tmp_path: Path) -> None:
    written, index = RunFolder(tmp_path), SampleIndex(tmp_path)
    assert index.advance(ReadBudget()) and index.steps == {}
    written.append_samples(1, [{"completion": "a"}])
    with (tmp_path / SAMPLES).open("ab") as file:
        file.write(b'{"step": 2, "attempt": 1, "completion": "b')
    assert not index.advance(ReadBudget()) and index.count_rows() == {1: 1}
    with (tmp_path / SAMPLES).open("ab") as file:
        file.write(b'"}\nnonsense\n')
    assert index.advance(ReadBudget()) and index.count_rows() == {1: 1, 2: 1}
    assert [row["completion"] for row in index.read_page(2, 0, ReadBudget())[0]] == ["b"]


@pytest.mark.parametrize("budget", [None, 300])
def test_curves_are_the_valid_rows(tmp_path: Path, budget: int | None) -> None:
    write_attempts(tmp_path, indexed=None)
    curves = Curves(tmp_path)
    while not curves.advance(ReadBudget(budget)):
        pass
    rows = read_metrics(tmp_path / METRICS)
    assert curves.steps == [row["step"] for row in rows] == [1, 2, 3, 4] and curves.revision == 1
    assert curves.slice(0)["reward"] == pytest.approx([row["reward"] for row in rows], rel=1e-6)
    assert curves.slice(2) == {"attempt": [2, 2], "reward": [1.5, 2.0], "late": [None, 1]}  # no number: no column


def test_an_answer_holds_only_what_is_new(tmp_path: Path) -> None:
    write_demo_run(tmp_path, steps=5)
    view = RunView(tmp_path, "mine")
    first = view.describe(0, 0, ReadBudget())
    assert first["steps"] == [0, 1, 2, 3, 4, 5] and first["config"]["recipe"] == "grpo_gsm8k" and not first["more"]
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "attempt": 1, "reward": 2.0}\n')
    second = view.describe(6, first["revision"], ReadBudget())
    assert (second["start"], second["steps"], second["columns"]["reward"]) == (6, [6], [2.0]) and "config" not in second
    with (tmp_path / METRICS).open("a") as file:  # resumed from step 4
        file.write('{"step": 5, "attempt": 2, "reward": 3.0}\n')
    third = view.describe(7, second["revision"], ReadBudget())
    assert (third["start"], third["steps"]) == (0, [0, 1, 2, 3, 4, 5]) and third["columns"]["reward"][-1] == 3.0


def test_the_list_of_more_runs_than_one_answer_reads_is_whole_in_the_next(tmp_path: Path) -> None:
    for name in "abc":
        write_demo_run(tmp_path / "deep" / name, steps=3)
    board = RunBoard([tmp_path])
    lists = [[row["recipe"] for view in board.refresh() for row in [view.summarize(ReadBudget(101_000))]] for _ in range(2)]
    assert lists == [["grpo_gsm8k"] * 3] * 2
    small = ReadBudget(105_000)
    assert [view.summarize(small)["name"] for view in RunBoard([tmp_path]).refresh()] != []
    assert {view.name for view in board.refresh()} == {"deep/a", "deep/b", "deep/c"}


def test_the_ranges_are_those_of_the_page_on_metrics() -> None:
    """Each rule has the words of rlkit/docs/metrics.md, and each bound that stands there alone has a rule."""
    for rule in health.RULES:
        name = find_name(rule.name.replace("*", "mine"))
        assert name is not None and page()[name][1] == rule.healthy, rule.name
    bounds = {name for name, (_, healthy, _) in page().items() if re.fullmatch(r"(above|below) [\d.]+|0|[\d.]+ to [\d.]+", healthy)}
    assert bounds <= {str(find_name(rule.name.replace("*", "mine"))) for rule in health.RULES}


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("frac_reward_zero_std", [0.9] * 5 + [0.5] * 10, [0.5] * 5 + [0.81] * 10),
        ("entropy", [0.3] * 12, [0.3] * 5 + [0.04] * 10),
        ("rewards/mine/failure_rate", [0.1] + [0.0] * 10, [0.0] * 9 + [0.01]),
        ("sampling/importance_sampling_ratio/mean", [0.99], [1.03]),
        ("grad_norm", [1.0] * 20 + [9.0], [1.0] * 20 + [11.0]),
        ("reward", [0.5, 0.6] * 10, [0.9, 0.91] * 5 + [0.1, 0.11] * 5),
    ],
)
def test_a_metric_outside_its_range_is_noted(tmp_path: Path, metric: str, good: list[float], bad: list[float]) -> None:
    for values, noted in ((good, []), (bad, [metric])):
        path = tmp_path / str(len(noted))
        path.mkdir()
        rows = [json.dumps({"step": step, "attempt": 1, metric: value}) for step, value in enumerate(values)]
        (path / METRICS).write_text("\n".join(rows) + "\n")
        curves = Curves(path)
        curves.advance(ReadBudget())
        assert [note["metric"] for note in health.find_health_notes(curves)] == noted


@pytest.mark.parametrize("content", ["", "[]", "{", '{"step": "x"}', "\x00" * 100, "[" * 100_000, '{"state": 1, "steps": []}'])
def test_damaged_files_leave_a_run_that_says_less(tmp_path: Path, content: str) -> None:
    for name in ("recipe.yaml", STATUS, METRICS, SAMPLES, SAMPLES_INDEX, "summary.json"):
        (tmp_path / name).write_text(content + "\n")
    view = RunView(tmp_path, "damaged")
    found = view.describe(0, 0, ReadBudget())
    assert found["run"]["state"] == "unknown" and found["steps"] == []
    assert view.list_steps(ReadBudget())["steps"] == []


def test_a_phase_has_the_colour_that_it_has_in_the_picture() -> None:
    static = ROOT / "rlkit" / "report" / "page" / "static"
    phases = json.loads(re.findall(r"^const PHASES = (\[.*?\]);", (static / "charts.js").read_text(), re.MULTILINE)[0])
    colors = dict(re.findall(r"\.phase(\d) \{ --c: (#\w{6}); \}", (static / "app.css").read_text()))
    assert {phase: colors[str(number)] for number, phase in enumerate(phases)} == PHASE_COLORS


def test_json_for_a_script_element_has_no_markup_and_loses_nothing() -> None:
    value = {HOSTILE: [HOSTILE, "\ud800", None, 1.5, random.Random(0).random()], "odd": float("inf")}
    text = format_page_json(value)
    assert text.isascii() and not set("<>&\n") & set(text)
    assert json.loads(text) == {**value, "odd": "inf"}
