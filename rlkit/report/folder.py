"""The folder of one run: logs that are only appended to, and small files that are replaced as a whole.

metrics.jsonl has one object for each step (step 0 is the evaluation before training), samples.jsonl one for each sample. Every row has
`step` and `attempt`. A resumed run is the next attempt: from its first step on its rows replace those of earlier attempts.
JSON has no NaN: such a number is written as null and named in the row, `"not_finite": {"kl": "nan"}` (also "inf", "-inf").

A sample has: split (train or test), key (data row, draw, sample, turn), prompt, completion, of an episode turns (of each who wrote it, by:
policy or environment, and its text), answer (of the data; null without one), reward,
rewards (by name), extra (what rewards returned beside their scores), advantage (null where it was not learned from), stop, version. Those
whose tokens are recorded (report.tokens) also have tokens, lists over the tokens of the completion: ids; text, which joined is the
completion (a token inside a character adds "", the last one of the character all of it); rollout_logprobs of the sampler; logprobs and
entropies of the trainer before the update, null where the update did not compute them. Each float32 is written as the double it equals.

samples.index.jsonl says where the samples of a step are without reading them, a line for each append, written after its rows:
`{"step": 3, "attempt": 1, "offset": 81920, "bytes": 4096, "rows": 16}`. Lines follow each other without a gap, and cover samples.jsonl up
to rows whose line is still to come. A run that opens the folder corrects the index where a kill left it short, damaged or missing; a line
that it writes then may stand for several appends in a row with the same step and attempt.
"""

from __future__ import annotations

import fcntl
import json
import math
import numbers
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from rlkit.errors import UserError
from rlkit.runtime.write_errors import build_removed_error, build_write_error

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SAMPLES_INDEX = "samples.index.jsonl"
SUMMARY = "summary.json"  # of a finished run
_BLOCK = 1 << 16  # bytes read at a time when looking for the last line
_INDEXED = ("step", "attempt", "offset", "bytes", "rows")  # keys of a line of the index
_ROW_START = re.compile(rb'\{"step": (\d+), "attempt": (\d+)[,}]')  # as _format_line begins a line
_PLAIN = {int, float, str, bool, type(None)}


class RunFolder:
    """The open folder of a run, created if it is missing. Raises UserError where it cannot be written, or another run writes it.

    `attempt` is one more than the highest in the logs, 1 in a new folder. An incomplete last line, left by a kill, is cut off.
    What writes later raises RunFailed where the folder was removed, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._metrics, metrics_attempt = _open_log(path / METRICS)
            self._samples, samples_attempt = _open_log(path / SAMPLES)
            self._index = _open_index(path / SAMPLES_INDEX, self._samples, str(path / SAMPLES))
        except OSError as error:
            raise UserError(f"output folder {path} cannot be written ({error}); set output_dir= to a folder that can") from error
        self.attempt = max(metrics_attempt, samples_attempt) + 1

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the row of this step. It is passed to the operating system, so that it survives a SIGKILL."""
        self._append(self._metrics, step, [metrics])

    def append_samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append the samples of this step, one on each line, and their line in the index."""
        offset = self._samples.seek(0, os.SEEK_END)
        rows = self._append(self._samples, step, samples)
        if rows:
            with self._raise_run_failed():
                self._index.write(_format_index(step, self.attempt, offset, self._samples.tell() - offset, rows))
                self._index.flush()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file, completely or not at all."""
        self.write_text(name, json.dumps(_to_json_row(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, completely or not at all."""
        temporary = self.path / f".{name}.{os.getpid()}"
        with self._raise_run_failed():
            with temporary.open("wb") as file:
                file.write(text.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)

    def close(self) -> None:
        """Close the logs; a second call does nothing."""
        for log in (self._metrics, self._samples, self._index):
            with suppress(OSError):  # what could not be written has ended the run already
                log.close()

    @contextmanager
    def _raise_run_failed(self) -> Iterator[None]:
        """Raises RunFailed where the folder was removed, which a file that is open does not notice, and where what is inside fails."""
        if not (self.path / METRICS).exists() or os.fstat(self._metrics.fileno()).st_nlink == 0:
            raise build_removed_error(self.path)
        try:
            yield
        except OSError as error:
            raise build_write_error(self.path, self.path, error) from error

    def _append(self, log: IO[bytes], step: int, rows: Iterable[Mapping[str, Any]]) -> int:
        """Appends rows; returns how many."""
        lines = [_format_line({"step": step, "attempt": self.attempt}, row) for row in rows]
        with self._raise_run_failed():
            log.write(b"".join(lines))
            log.flush()
        return len(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The valid rows of a log, by step: those of the last attempt that began at or before their step.

    It works while a run writes (an incomplete last line is left out). Raises UserError at a line that is not JSON.
    """
    complete = path.read_bytes().rpartition(b"\n")[0]
    rows = [_parse_row(line, f"{path} line {number}") for number, line in enumerate(complete.split(b"\n"), start=1) if line]
    begins: dict[int, int] = {}  # attempt -> its first step
    for row in rows:
        begins[row["attempt"]] = min(row["step"], begins.get(row["attempt"], row["step"]))
    valid = [row for row in rows if row["attempt"] == max(attempt for attempt, begin in begins.items() if begin <= row["step"])]
    return sorted(valid, key=lambda row: int(row["step"]))  # stable: the samples of a step keep their order


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The valid rows of a metrics.jsonl, one for each step."""
    return list({row["step"]: row for row in read_rows(path)}.values())


def _open_log(path: Path) -> tuple[IO[bytes], int]:
    """A log opened for appending, without an incomplete last line, and the attempt of its last row; 0 without rows."""
    log = path.open("a+b")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends
    except BlockingIOError as error:
        log.close()
        raise UserError(f"another process writes to {path.parent}; stop it, or choose another output_dir") from error
    except OSError:
        pass  # this file system has no locks
    end = log.seek(0, os.SEEK_END)
    start, tail = end, b""
    while start > 0 and tail.count(b"\n") < 2:  # samples.jsonl can have gigabytes: only its last line is read
        size = min(_BLOCK, start)
        start -= size
        log.seek(start)
        tail = log.read(size) + tail
    complete, _, incomplete = tail.rpartition(b"\n")
    log.truncate(end - len(incomplete))
    last = complete.rpartition(b"\n")[2]
    return log, int(_parse_row(last, f"the last line of {path}")["attempt"]) if last else 0


def _open_index(path: Path, samples: IO[bytes], source: str) -> IO[bytes]:
    """The index of samples that are open, opened for appending: cut where it is wrong, and with lines for all that it lacked."""
    index = path.open("a+b")
    index.seek(0)
    end, kept, covered = samples.seek(0, os.SEEK_END), 0, 0
    for line in index:
        entry = _parse_index(line)
        if entry is None or entry["offset"] != covered or covered + entry["bytes"] > end:
            break
        kept += len(line)
        covered += entry["bytes"]
    index.truncate(kept)
    samples.seek(covered)
    for (step, attempt), lines in groupby(samples, lambda line: _read_row_start(line, source)):
        sizes = [len(line) for line in lines]
        index.write(_format_index(step, attempt, covered, sum(sizes), len(sizes)))
        covered += sum(sizes)
    index.flush()
    return index


def _format_index(step: int, attempt: int, offset: int, size: int, rows: int) -> bytes:
    return json.dumps(dict(zip(_INDEXED, (step, attempt, offset, size, rows), strict=True))).encode() + b"\n"


def _parse_index(line: bytes) -> dict[str, int] | None:
    """None where it is no complete line of an index."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(entry, dict) and entry.keys() == set(_INDEXED)
    return entry if whole and all(type(value) is int and value >= 0 for value in entry.values()) else None


def _read_row_start(line: bytes, source: str) -> tuple[int, int]:
    """Step and attempt of a row, without reading all of it: samples have gigabytes."""
    if found := _ROW_START.match(line):
        return int(found[1]), int(found[2])
    row = _parse_row(line, f"a line of {source}")
    return row["step"], row["attempt"]


def _parse_row(line: bytes, source: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and all(type(row.get(key)) is int and row[key] >= 0 for key in ("step", "attempt")):
            return row
    except (ValueError, RecursionError):
        pass
    raise UserError(f'{source} is not a JSON object with "step" and "attempt": {line[:60]!r}; fix or remove that line')


def _format_line(key: dict[str, Any], values: Mapping[str, Any]) -> bytes:
    if reserved := key.keys() & values.keys():
        raise ValueError(f"a row must not contain {sorted(reserved)}: the folder writes these keys itself")
    # A lone surrogate becomes \udcxx, as JSON writes it.
    return json.dumps(key | _to_json_row(values), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def _to_json_row(values: Mapping[str, Any]) -> dict[str, Any]:
    not_finite: dict[str, str] = {}
    row = {str(name): _to_plain(value, str(name), not_finite) for name, value in values.items()}
    return row | {"not_finite": not_finite} if not_finite else row


def _to_plain(value: Any, name: str, not_finite: dict[str, str]) -> Any:
    """The value in JSON types. Numbers of numpy and torch become Python numbers, objects of other types their text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item, f"{name}.{key}", not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if set(map(type, value)) <= _PLAIN and all(type(item) is not float or math.isfinite(item) for item in value):
            return list(value)  # the tokens of a step: many, and nearly always plain
        return [_to_plain(item, f"{name}.{i}", not_finite) for i, item in enumerate(value)]
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isfinite(number):
        return number
    not_finite[name] = str(number)
    return None
