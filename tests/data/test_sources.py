from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.data.columns import Columns, PromptReader
from rlkit.data.rows import BadRow
from rlkit.data.sources import DataSource, open_rows, parse_source
from rlkit.errors import UserError
from tests.conftest import ROOT

ROWS = [{"question": "1+1", "answer": "2"}, {"question": "2+3", "answer": "5"}, {"question": "4+4", "answer": "8"}]


def opened(spec: object, split: str = "train") -> object:
    return open_rows(spec if isinstance(spec, dict) else str(spec), split_default=split, offline=True)


def refusal(spec: object, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        opened(spec, split)
    text = str(caught.value)
    assert len(text.splitlines()) <= 10
    return text


def write_json_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2))


def write_csv(path: Path) -> None:
    path.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS))


def write_parquet(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(path))


def write_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS))  # no newline at the end


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_lines), ("a.json", write_lines), ("b.json", write_json_list), ("a.csv", write_csv), ("a.parquet", write_parquet)],
)
def test_every_format_gives_the_same_rows_and_leaves_nothing_beside_them(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    rows = opened(tmp_path / name)
    assert list(rows) == ROWS
    assert list(rows.scan(["answer"]))[2]["answer"] == "8"
    assert rows[-1] == ROWS[2] and rows[1:] == ROWS[1:]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_builtin_task_has_a_thousand_held_out_problems() -> None:
    rows = opened("builtin", split="test")
    assert len(rows) == 1000 and rows[0]["prompt"][0]["role"] == "user"
    assert 'no split "dev"; it has train, test' in refusal("builtin@dev")


def test_values_of_json_and_csv_stay_what_they_are(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    odd = [{"answer": "2020-01-01"}, {"answer": 7, "tools": [{"x": None}]}, {"answer": "2020-01-02"}]
    assert list(opened(jsonl(odd))) == odd  # Arrow would make dates of them, and give each row all columns
    (tmp_path / "a.csv").write_text('\ufeffanswer,note\n007,NA\n"1,000",\n18,None\n')
    assert list(opened(tmp_path / "a.csv")) == [
        {"answer": "007", "note": "NA"},
        {"answer": "1,000", "note": None},
        {"answer": "18", "note": "None"},
    ]


def test_blank_lines_byte_order_marks_and_windows_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": "\xc3\xa9"}\n\n{"b": 3}')
    rows = opened(path)
    assert list(rows) == [{"a": 1}, {"a": "é"}, {"b": 3}]
    assert rows.describe_row(1) == f"data.train {path} row 2 (line 4)"


def test_a_list_is_split_where_its_rows_are(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"a": ']},{ é 漢 \\ " '}, {"b": [[1], {"c": {}}]}, {"a": ""}]
    path.write_text("\n [" + " ,\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    assert list(opened(path)) == rows


def test_a_folder_gives_the_files_of_the_split(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl(ROWS[:1], "d/train-00000-of-00002.jsonl")
    jsonl(ROWS[1:], "d/train-00001-of-00002.jsonl")
    jsonl([{"question": "9+9", "answer": "18"}], "d/test.jsonl")
    rows = opened(tmp_path / "d")
    assert list(rows) == ROWS
    assert rows.describe_row(2) == f"data.train {tmp_path}/d/train-00001-of-00002.jsonl row 2"
    assert [row["answer"] for row in opened(tmp_path / "d", split="test")] == ["18"]
    assert [row["answer"] for row in opened(f"{tmp_path}/d@test")] == ["18"]
    assert 'no file of the split "dev" (files: test.jsonl' in refusal(f"{tmp_path}/d@dev")


def test_a_folder_without_split_names_is_one_table(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl(ROWS[:2], "d/a.jsonl")
    jsonl(ROWS[2:], "d/b.jsonl")
    assert list(opened(tmp_path / "d", split="test")) == ROWS


def test_a_saved_dataset_is_read_with_its_splits(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(
        tmp_path / "s"
    )
    assert list(opened(tmp_path / "s")) == ROWS
    assert len(opened({"path": str(tmp_path / "s"), "split": "dev"})) == 1
    assert 'no split "test" (splits: train, dev)' in refusal(tmp_path / "s", split="test")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_changed_file_is_read_anew_even_under_its_old_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    before, after = ("answer\n1\n", "answer\n2\n") if name == "a.csv" else ('{"answer": "1"}\n', '{"answer": "2"}\n')
    path.write_text(before)
    stat = path.stat()
    assert opened(path)[0]["answer"] == "1"
    path.write_text(after)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(path)[0]["answer"] == "2"


def test_a_file_that_changes_under_a_run_stops_it(jsonl: Callable[..., Path]) -> None:
    rows = opened(jsonl(ROWS))
    jsonl(ROWS[::-1] + ROWS)
    with pytest.raises(UserError, match="changed while it was being read"):
        rows[0]


def test_a_broken_line_is_named_and_the_others_can_be_read(jsonl: Callable[..., Path]) -> None:
    path = jsonl([ROWS[0], '{"question": "2+3", "answer": ', ROWS[2], "[1]"])
    rows = opened(path)
    with pytest.raises(BadRow) as caught:
        rows[1]
    assert str(caught.value).startswith(f"data.train {path} line 2 is not valid JSON (Expecting value, column 31): ")
    assert rows[2] == ROWS[2]
    assert [type(row).__name__ for row in rows.scan()] == ["dict", "BadRow", "dict", "BadRow"]
    with pytest.raises(BadRow, match=r"line 4 is not an object of columns: \[1\]"):
        rows[3]


def test_what_is_missing_empty_or_broken_is_told_with_the_mend(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    path = jsonl(ROWS)
    assert refusal(tmp_path / "trian.jsonl").endswith(f"trian.jsonl does not exist; in {tmp_path} there is train.jsonl")
    assert f"there is no folder {tmp_path}/nowhere" in refusal(tmp_path / "nowhere" / "train.jsonl")
    assert 'is one file and has no split "test"' in refusal(f"{path}@test")
    for name in ("e.jsonl", "e.json", "e.csv", "e.parquet"):
        (tmp_path / name).touch()
        assert f"{name} is empty" in refusal(tmp_path / name)
    (tmp_path / "h.csv").write_text("question,answer\n")
    assert "h.csv is empty" in refusal(tmp_path / "h.csv")
    (tmp_path / "n.json").write_text("[]")
    assert "n.json is empty" in refusal(tmp_path / "n.json")
    (tmp_path / "c.json").write_text('[{"a": 1}, {"a": 2}')
    assert "is cut off after row 2" in refusal(tmp_path / "c.json")
    (tmp_path / "b.json").write_text('[{"a": 1},\n {"a": }]')
    assert "b.json line 2 is not valid JSON (Expecting value, column 8): row 2" in refusal(tmp_path / "b.json")
    (tmp_path / "o.json").write_text('{\n "data": []\n}')
    assert "o.json is one JSON object over many lines" in refusal(tmp_path / "o.json")
    (tmp_path / "x.parquet").write_text("no parquet")
    assert "cannot be read as parquet" in refusal(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert "x.csv line 3 has 3 fields, and the header has 2 fields: ['1', '2', '3']\nheader: a, b; put" in refusal(tmp_path / "x.csv")
    (tmp_path / "x.txt").touch()
    assert 'ends in ".txt"; known are .jsonl' in refusal(tmp_path / "x.txt")
    (tmp_path / "empty").mkdir()
    assert "is a folder without data" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("Tom has 3 apples, how many?,3\n", "line 2 has 3 fields, and the header has 2 fields: ['Tom has 3 apples', ' how many?', '3']"),
        ("1+1,2,\n2+2,4,\n", "line 2 has 3 fields, and the header has 2 fields: ['1+1', '2', '']"),
        ('"1\n+\n1",2\n\n3\n', "line 6 has 1 field, and the header has 2 fields: ['3']"),
    ],
)
def test_a_csv_row_of_other_fields_than_the_header_is_refused(tmp_path: Path, rows: str, told: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + rows)
    assert refusal(path).startswith(f"data.train {path} {told}")


def test_a_csv_may_hold_commas_lines_and_much_text_in_quotes_blank_lines_and_an_index(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f',a\n0,"1, ""2""\n3"\n\n1,{"x" * 200_000}\n')
    assert list(opened(tmp_path / "a.csv")) == [{"Unnamed: 0": "0", "a": '1, "2"\n3'}, {"Unnamed: 0": "1", "a": "x" * 200_000}]


def test_csv_files_of_a_folder_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n1+1,2\n")
    (tmp_path / "b.csv").write_text("answer,question\n4,2+2\n")
    assert list(opened(tmp_path)) == [{"question": "1+1", "answer": "2"}, {"question": "2+2", "answer": "4"}]
    (tmp_path / "b.csv").write_text("answer,question,level\n4,2+2,3\n")
    assert f"{tmp_path}/b.csv has the columns answer, question, level, and {tmp_path}/a.csv has question, answer" in refusal(tmp_path)
    (tmp_path / "b.csv").write_text("question,answer\n1+1,2\n1,2,3\n")
    assert f"{tmp_path}/b.csv line 3 has 3 fields" in refusal(tmp_path)
    (tmp_path / "b.csv").write_text("question,question\n1+1,2\n")
    assert "has the column question more than once" in refusal(tmp_path / "b.csv")


def test_nothing_may_follow_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": "é"}] \n\t\r\n')
    assert list(opened(path)) == [{"a": "é"}]
    path.write_text('[\n{"a": 1}]\n\n[{"a": "é"}]')  # cat a.json b.json
    assert refusal(path).splitlines()[0] == f'data.train {path} line 4 goes on after the closing ] of its list: [{{"a": "é"}}]'
    path.write_text('[{"a": 1}],')
    assert "line 1 goes on after the closing ]" in refusal(path)


def test_no_local_file_has_a_server_asked(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    write_parquet(tmp_path / "a.parquet")
    program = f"""
import socket
asked = []
socket.getaddrinfo = lambda host, *rest, **more: asked.append(host) or 1 / 0
from rlkit.data.sources import open_rows
for name in ("a.csv", "a.parquet"):
    assert len(open_rows({str(tmp_path)!r} + "/" + name, split_default="train", offline=False)) == 3
print(asked)
"""
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name} | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_scan_of_columns_that_are_not_there_still_gives_every_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    rows = opened(tmp_path / "a.parquet")
    assert len(list(rows.scan(["qestion"]))) == 3
    mend = r'row 1 has no column "qestion" \(columns: question, answer\); set data.columns.prompt'
    for answer in ("answer", "anwser"):
        with pytest.raises(BadRow, match=mend):
            PromptReader(rows, Columns(prompt="qestion", answer=answer)).check()


def test_a_hub_name_while_offline_is_refused_in_words() -> None:
    assert "the hub cannot be asked (offline=true, or no network) and it is not in the cache" in refusal("rlkit-tests/no-such-rows@train")


def test_the_parts_of_a_spec() -> None:
    assert parse_source("openai/gsm8k:main@train[:9]#e53f0") == DataSource("openai/gsm8k", "main", "train[:9]", "e53f0")
    assert parse_source("openai/gsm8k@test") == DataSource("openai/gsm8k", None, "test", None)
    assert parse_source({"path": "openai/gsm8k:main", "split": "test"}) == DataSource("openai/gsm8k", "main", "test", None)
    with pytest.raises(UserError, match=r'data.train has the unknown key "spilt" \(known: path, config, split, revision\)'):
        parse_source({"path": "a", "spilt": "test"})


def test_the_real_rows_are_all_there(gsm8k: Path) -> None:
    rows = opened(gsm8k)
    lines = [json.loads(line) for line in (gsm8k / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) in (7473, 40)  # the real ones, or those that stand in for them
    assert [rows[0], rows[-1]] == [lines[0], lines[-1]] and list(rows[0]) == ["question", "answer"]
    assert len(opened(gsm8k, split="test")) in (659, 1319, 40)  # a part of the test split, all of it, or the stand-ins
