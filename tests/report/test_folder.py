"""The logs outlive a kill, a resume supersedes what it repeats, and every line is JSON."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch

from rlkit.assembly.run_folder import explain_occupied
from rlkit.errors import RunFailed, UserError
from rlkit.report.folder import RunFolder, read_metrics, read_rows
from tests.repeatable import select_repeatable

WRITER = """
import sys
from pathlib import Path
from rlkit.report.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    folder.append_samples(step, [{"completion": "x" * 3_000_000}])
    folder.append_metrics(step, {"reward": step / 8})
    print(step, flush=True)
"""


def _write_steps(path: Path, steps: range, reward: float) -> None:
    folder = RunFolder(path)
    for step in steps:
        folder.append_metrics(step, {"reward": reward})
        folder.append_samples(step, [{"completion": "a"}, {"completion": "b"}])
    folder.close()


def _check_index(path: Path) -> list[tuple[int, int, int]]:
    """The index, read beside the rows that it points at, covers them all; returns step, attempt and number of rows of each line."""
    content, end, found = (path / "samples.jsonl").read_bytes(), 0, []
    for line in (path / "samples.index.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert list(entry) == ["step", "attempt", "offset", "bytes", "rows"] and entry["offset"] == end
        end += entry["bytes"]
        rows = [json.loads(row) for row in content[entry["offset"] : end].splitlines()]
        assert [(row["step"], row["attempt"]) for row in rows] == [(entry["step"], entry["attempt"])] * entry["rows"]
        found.append((entry["step"], entry["attempt"], entry["rows"]))
    assert end == len(content)
    return found


def test_the_index_has_a_line_for_each_append(tmp_path: Path) -> None:
    _write_steps(tmp_path, range(2), 0.5)
    folder = RunFolder(tmp_path)
    folder.append_samples(1, [{"completion": "\ud800 é\u2028"}])
    folder.append_samples(1, [])  # no rows, no line
    folder.append_samples(1, [{}, {}, {}])
    folder.close()
    assert _check_index(tmp_path) == [(0, 1, 2), (1, 1, 2), (1, 2, 1), (1, 2, 3)]


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "short", "torn", "nonsense", "gap", "beyond", "torn sample", "lost samples"],
)
def test_an_index_that_does_not_fit_is_corrected_at_the_resume(damage: str, tmp_path: Path) -> None:
    _write_steps(tmp_path, range(4), 0.5)
    index, samples = tmp_path / "samples.index.jsonl", tmp_path / "samples.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    texts = {
        "empty": b"",
        "short": b"".join(lines[:2]),
        "torn": b"".join(lines[:3]) + lines[3][:-9],
        "nonsense": b"[]\n" + b"".join(lines),
        "gap": lines[0] + lines[2],
        "beyond": b"".join(lines) + lines[3].replace(b'"offset": ', b'"offset": 9'),
    }
    if damage == "missing":
        index.unlink()
    if damage in texts:
        index.write_bytes(texts[damage])
    if damage == "torn sample":  # killed while it wrote, before the line of the index
        with samples.open("ab") as file:
            file.write(b'{"step": 4, "attempt": 1, "completion": "a"}\n{"step": 4, "att')
    if damage == "lost samples":  # the machine went down: the index reached the disk, and they did not
        os.truncate(samples, samples.stat().st_size - 3)
    folder = RunFolder(tmp_path)
    folder.append_samples(9, [{"completion": "c"}])
    folder.close()
    last = {"torn sample": [(3, 1, 2), (4, 1, 1)], "lost samples": [(3, 1, 1)]}.get(damage, [(3, 1, 2)])
    assert _check_index(tmp_path) == [(0, 1, 2), (1, 1, 2), (2, 1, 2), *last, (9, 2, 1)]


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    _write_steps(tmp_path, range(2), 0.5)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "att')
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "attempt": 1, "completion": "' + b"x" * 200_000)  # longer than one block of the search

    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]  # a reader beside the run leaves it out
    folder = RunFolder(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    folder.append_metrics(2, {"reward": 0.25})
    folder.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole + b'{"step": 2, "attempt": 2, "reward": 0.25}\n'
    assert [(row["step"], row["completion"]) for row in read_rows(tmp_path / "samples.jsonl")] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_a_file_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0')
    folder = RunFolder(tmp_path)
    assert folder.attempt == 1
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_the_last_attempt_of_a_step_counts_and_supersedes_what_the_earlier_ones_ran_further(tmp_path: Path) -> None:
    _write_steps(tmp_path, range(6), 0.1)  # 0 to 5, killed
    _write_steps(tmp_path, range(3, 5), 0.2)  # resumed from 2, killed after 4
    _write_steps(tmp_path, range(4, 5), 0.3)  # resumed from 3, killed after 4: step 5 is still to come
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["attempt"], row["reward"]) for row in rows] == [
        (0, 1, 0.1),
        (1, 1, 0.1),
        (2, 1, 0.1),
        (3, 2, 0.2),
        (4, 3, 0.3),
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9  # nothing was erased
    samples = read_rows(tmp_path / "samples.jsonl")
    assert [(row["step"], row["attempt"], row["completion"]) for row in samples[-4:]] == [
        (3, 2, "a"),
        (3, 2, "b"),
        (4, 3, "a"),
        (4, 3, "b"),
    ]


def test_an_attempt_that_only_wrote_samples_counts_as_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_samples(1, [{"completion": "a"}])
    folder.close()
    assert RunFolder(tmp_path).attempt == 2


def test_rows_survive_sigkill_in_the_middle_of_writing(tmp_path: Path) -> None:
    for attempt in range(1, 6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        written = int(writer.stdout.readline())  # the loop runs
        time.sleep(0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        written = max([written, *map(int, writer.stdout.read().split())])
        assert writer.wait() == -signal.SIGKILL

        assert RunFolder(tmp_path).attempt == attempt + 1
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert {row["attempt"] for row in rows} == {attempt}
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) in (written, written + 1)  # killed between the row and the print
        assert all(row["reward"] == row["step"] / 8 for row in rows)
        samples = read_rows(tmp_path / "samples.jsonl")
        assert [len(row["completion"]) for row in samples] == [3_000_000] * len(samples)
        _check_index(tmp_path)
    for line in (tmp_path / "samples.jsonl").open("rb"):
        json.loads(line)


def test_numbers_come_back_as_they_were_and_what_is_no_number_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    values = {"sum": 0.1 + 0.2, "third": numpy.float32(1 / 3), "count": numpy.int64(7), "loss": torch.tensor(0.5), "kl": float("nan")}
    folder.append_metrics(1, values)
    folder.append_samples(1, [{"rewards": {"a": float("-inf"), "b": 1}, "text": "\ud800 é\n", "reward": None}])
    folder.close()

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    metrics = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert metrics["sum"] == 0.30000000000000004
    assert metrics["third"] == float(numpy.float32(1 / 3))
    assert (metrics["count"], metrics["loss"], metrics["kl"], metrics["not_finite"]) == (7, 0.5, None, {"kl": "nan"})
    sample = json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8"), parse_constant=refuse)
    assert sample["rewards"] == {"a": None, "b": 1}
    assert sample["not_finite"] == {"rewards.a": "-inf"}
    assert (sample["text"], sample["reward"]) == ("\ud800 é\n", None)


def test_a_row_may_not_bring_a_step_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['step'\]"):
        RunFolder(tmp_path).append_metrics(1, {"step": 2})


def test_what_a_second_run_must_repeat() -> None:
    row = {
        "step": 3,
        "attempt": 2,
        "reward": 0.5,
        "eval/accuracy": 0.25,
        "time/step": 2.0,
        "throughput/tokens_per_second": 9.0,
        "memory/gib": 1.0,
    }
    assert select_repeatable(row) == {"step": 3, "reward": 0.5, "eval/accuracy": 0.25}


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("summary.json", {"status": "stopped"})
    folder.write_json("summary.json", {"status": "done", "accuracy_after": float("nan")})
    folder.write_text("recipe.yaml", "seed: 0\n")
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "status": "done",
        "accuracy_after": None,
        "not_finite": {"accuracy_after": "nan"},
    }
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 0\n"
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "recipe.yaml", "samples.index.jsonl", "samples.jsonl", "summary.json"]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written .*output_dir="):
        RunFolder(tmp_path / "file" / "run")


def test_a_folder_that_is_removed_under_a_run_is_reported_as_that(tmp_path: Path) -> None:
    """By every writer, also where another run has made one of its name; an open file takes rows all the same."""
    removed = r"the folder of this run, .*run, was removed or replaced while the run wrote to it; put it back"
    for again in (False, True):
        folder = RunFolder(tmp_path / "run")
        folder.append_metrics(0, {})
        shutil.rmtree(tmp_path / "run")
        other = RunFolder(tmp_path / "run") if again else None
        with pytest.raises(RunFailed, match=removed):
            folder.append_metrics(1, {})
        with pytest.raises(RunFailed, match=removed):
            folder.append_samples(1, [{}])
        with pytest.raises(RunFailed, match=removed):
            folder.write_json("summary.json", {"status": "done"})
        folder.close()
    assert other is not None and other.attempt == 1
    assert sorted(os.listdir(tmp_path / "run")) == ["metrics.jsonl", "samples.index.jsonl", "samples.jsonl"]


def test_a_full_disk_ends_the_run_in_words(tmp_path: Path) -> None:
    """Closing, which tries to write once more, does not hide them."""
    folder = RunFolder(tmp_path)
    words = rf"{tmp_path} cannot be written \(.*File too large.*\); free some space: .* continues"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    try:
        with pytest.raises(RunFailed, match=words):
            folder.append_samples(1, [{"completion": "x" * 2**17}])
        with pytest.raises(RunFailed, match=words):
            folder.write_text("notes", "x" * 2**17)
        folder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


GARBAGE = [
    "nonsense",
    '{"step": "1", "attempt": 1}',
    '{"step": 1, "attempt": null}',
    '{"step": -1, "attempt": 1}',
    "[" * 9_999,
    "\0\0",
    "{}",
]


@pytest.mark.parametrize("line", GARBAGE)
def test_garbage_in_the_metrics_is_found_before_the_run_begins(line: str, tmp_path: Path) -> None:
    """In any line; a torn last line, after a kill, is cut off by the run."""
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    (log := tmp_path / "metrics.jsonl").write_text('{"step": 0, "attempt": 1}\n' + line + '\n{"step": 2, "attempt": 1}\n{"step": 3, "at')
    assert "metrics.jsonl line 2 is not a JSON object" in str(explain_occupied(tmp_path, "seed: 1\n", "auto"))
    log.write_text('{"step": 0, "attempt": 1}\n' + line)
    assert explain_occupied(tmp_path, "seed: 1\n", "auto") is None


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    """Until the other process is gone, however it went."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"  # a step is written
    before = (tmp_path / "metrics.jsonl").read_bytes()[:20]
    with pytest.raises(UserError, match=rf"another process writes to {tmp_path}; stop it, or choose another output_dir"):
        RunFolder(tmp_path)
    process.kill()
    process.wait()
    folder = RunFolder(tmp_path)
    folder.close()
    assert folder.attempt == 2 and (tmp_path / "metrics.jsonl").read_bytes()[:20] == before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "attempt": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"metrics.jsonl line 2 is not a JSON object"):
        read_metrics(log)
    with pytest.raises(UserError, match=r"the last line of .*metrics.jsonl is not a JSON object"):
        RunFolder(tmp_path)
