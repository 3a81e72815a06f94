"""Two sources mixed 3 : 1: the ratio, one order for any number of ranks, and a run stopped in mid-epoch that repeats and skips nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.report.folder import read_rows
from tests.conftest import run

A, B = 10, 3  # rows; of 16 prompts 12 come from A, which begin its second pass, and 4 from B, which begin its second
Order = list[list[list[int]]]


@pytest.fixture(scope="module")
def mixed(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixed")
    for name, count in (("a", A), ("b", B)):
        lines = (json.dumps({"problem": f"{name}{i}: 1+{i}", "solution": f"{i + 1}"}) for i in range(count))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    places = f"{{a: {{path: '{folder}/a.jsonl', weight: 3}}, b: {{path: '{folder}/b.jsonl', weight: 1, system: Think.}}}}"
    return [*small, f"data.train={places}", "samples_per_prompt=2", "eval.every=0", "eval.problems=2"]


def order(mixed: list[str], folder: Path, ranks: int) -> Order:
    file = folder / f"{ranks}.json"
    ended = run(str(file), *mixed, program="order.py", ranks=ranks, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    steps: Order = json.loads(file.read_text())
    return steps


@pytest.fixture(scope="module")
def alone(mixed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Order:
    return order(mixed, tmp_path_factory.mktemp("alone"), 1)


def test_of_every_four_prompts_three_are_of_one_source(alone: Order) -> None:
    assert [sum(row < A for row, _ in step) for step in alone] == [3, 3, 3, 3]
    places = [(row, draw) for step in alone for row, draw in step]
    assert sorted(row for row, draw in places if row < A and draw == 0) == list(range(A))
    assert sorted(row for row, draw in places if row >= A and draw == 0) == list(range(A, A + B))
    assert [draw for _, draw in places].count(1) == 3 and len(set(places)) == 16


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_sees_one_order(mixed: list[str], alone: Order, tmp_path: Path, ranks: int) -> None:
    assert order(mixed, tmp_path, ranks) == alone


def test_passes_over_all_rows_are_a_number_of_steps(mixed: list[str], tmp_path: Path) -> None:
    assert len(order([*mixed, "steps=null", "data.epochs=2.5"], tmp_path, 1)) == 8  # 2.5 x 13 rows, 4 a step


def test_a_run_stopped_in_mid_epoch_goes_on_with_the_next_prompt(mixed: list[str], alone: Order, tmp_path: Path) -> None:
    stopped = run("SIGTERM", "update", "3", *mixed, f"output_dir={tmp_path}", program="struck.py")
    assert stopped.code == 75, stopped.out + stopped.err
    ended = run(*mixed, f"output_dir={tmp_path}")
    assert ended.code == 0, ended.out + ended.err
    trained = [row for row in read_rows(tmp_path / "samples.jsonl") if row["split"] == "train"]
    assert {row["attempt"] for row in trained} == {1, 2}
    assert [[row["key"][:2] for row in trained if row["step"] == step][::2] for step in (1, 2, 3, 4)] == alone
    systems = {row["key"][0] >= A: row["prompt"] for row in trained}
    assert "Think." in systems[True] and "Think." not in systems[False]  # what a source says for itself
