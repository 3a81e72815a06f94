"""The folder of one run: logs that are only appended to, and small files that are replaced as a whole.

metrics.jsonl has one object for each step (step 0 is the evaluation before training), samples.jsonl one for each sample. Every row has
`step` and `attempt`. A resumed run is the next attempt: from its first step on its rows replace those of earlier attempts.
JSON has no NaN: such a number is written as null and named in the row, `"not_finite": {"kl": "nan"}` (also "inf", "-inf").
"""

from __future__ import annotations

import fcntl
import json
import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rlkit.errors import UserError
from rlkit.runtime.write_errors import build_removed_error, build_write_error

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"  # of a finished run
_BLOCK = 1 << 16  # bytes read at a time when looking for the last line


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
        except OSError as error:
            raise UserError(f"output folder {path} cannot be written ({error}); set output_dir= to a folder that can") from error
        self.attempt = max(metrics_attempt, samples_attempt) + 1

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the row of this step. It is passed to the operating system, so that it survives a SIGKILL."""
        self._append(self._metrics, step, [metrics])

    def append_samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append the samples of this step, one on each line."""
        self._append(self._samples, step, samples)

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
        for log in (self._metrics, self._samples):
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

    def _append(self, log: IO[bytes], step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [_format_line({"step": step, "attempt": self.attempt}, row) for row in rows]
        with self._raise_run_failed():
            log.write(b"".join(lines))
            log.flush()


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
