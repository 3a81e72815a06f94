"""All rows of files are looked at before a run, and looked at again only where something has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlkit.data.columns import Columns, PromptReader
from rlkit.data.row_check import FIRST_ROWS, check_once
from rlkit.data.rows import BadRow
from rlkit.data.sources import open_rows
from rlkit.grading.references import REFERENCE_CHECKS


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int | None]:
    """How many rows each look was to be at most."""
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    limits: list[int | None] = []
    look = PromptReader.check
    monkeypatch.setattr(PromptReader, "check", lambda self, limit=None: limits.append(limit) or look(self, limit))
    return limits


def check(path: Path, settings: object = "columns") -> None:
    rows = open_rows({"path": str(path)}, split_default="train", offline=True)
    check_once(PromptReader(rows, Columns(), checks=[REFERENCE_CHECKS["accuracy"]]), settings)


def write_rows(path: Path, answers: list[object]) -> Path:
    path.write_text("\n".join(json.dumps({"question": "1+1", "answer": answer}) for answer in answers))
    return path


def test_a_reference_far_down_a_file_is_found_at_start_each_time(tmp_path: Path, scans: list[int | None]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [2] * FIRST_ROWS + [{"value": 2}])
    for _ in range(2):
        with pytest.raises(BadRow, match=re.escape(f"row {FIRST_ROWS + 1} has in column")):
            check(path)


def test_files_without_a_fault_are_looked_at_once(tmp_path: Path, scans: list[int | None]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [2, 3])
    check(path)
    check(path)
    assert scans == [None]
    check(path, "other columns")
    write_rows(path, [2, [3, "three"]])
    check(path)
    assert scans == [None] * 3
    write_rows(path, [2, []])
    with pytest.raises(BadRow, match="row 2 "):
        check(path)


def test_a_long_look_is_announced(
    tmp_path: Path, scans: list[int | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [2, 3])
    check(path)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("rlkit.data.row_check.LONG", 2)
    check(path, "other columns")
    check(path, "other columns")
    assert capsys.readouterr().out == f"looking at the 2 rows of data.train {path}, once until they or their settings change\n"


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_the_files_of_tables_are_known(tmp_path: Path, kind: str) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"question": "1+1", "answer": "2"}])
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    files = open_rows({"path": str(path)}, split_default="train", offline=True).files
    assert files and all(file.suffix == ".arrow" and file.is_file() for file in files)


def test_a_cache_that_cannot_be_written_stops_no_run(tmp_path: Path, scans: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "file" / "cache"))
    path = write_rows(tmp_path / "rows.jsonl", [2, 3])
    check(path)
    check(path)
    assert scans == [None, None]
