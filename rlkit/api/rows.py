"""Rows in memory as a file that a run can read, and read again when it is resumed: in the cache of rlkit, named by a digest of its content.

The run checks them as any file. Other rows are another file, so that a run is never resumed with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from rlkit.errors import UserError

FOLDER = "rows"  # in the cache folder of rlkit
SPLITS = ("train", "test")


def collect_data(data: Any) -> dict[str, Any]:
    """The keys of the section `data` that the argument `data` stands for, with rows in memory replaced by the path of their file."""
    keys = {"train": data} if data is not None and not isinstance(data, Mapping) else dict(data or {})
    for split in SPLITS:
        if keys.get(split) is not None and not isinstance(keys[split], str | PurePath | Mapping):
            keys[split] = save_rows(keys[split], f"data.{split}")
    return {f"data.{key}": value for key, value in keys.items()}


def save_rows(rows: Any, key: str) -> Path:
    """The file of these rows. Raises UserError where they are no rows, or no file can hold them."""
    from blake3 import blake3

    from rlkit.runtime.cache import find_cache_folder

    folder = find_cache_folder() / FOLDER
    folder.mkdir(exist_ok=True)
    suffix = ".parquet" if hasattr(rows, "to_parquet") else ".jsonl"
    part = folder / f".{os.getpid()}{suffix}"
    try:
        if suffix == ".parquet":
            _write_parquet(rows, part, key)
        else:
            _write_json(rows, part, key)
        file = folder / f"{blake3().update_mmap(part).hexdigest(32)}{suffix}"
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _write_parquet(rows: Any, file: Path, key: str) -> None:
    """Of a datasets.Dataset or a pandas DataFrame; neither library is imported here."""
    options = {"index": False} if type(rows).__module__.startswith("pandas") else {}
    try:
        rows.to_parquet(str(file), **options)
    except Exception as error:  # pyarrow, pandas and datasets each raise their own kinds
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: {type(rows).__name__} cannot be written as Parquet: {why}\ngive a list of dicts") from error


def _write_json(rows: Any, file: Path, key: str) -> None:
    if isinstance(rows, bytes) or not isinstance(rows, Iterable):
        raise UserError(f"{key} is {rows!r:.80}; it takes a list of dicts, a datasets.Dataset, a pandas DataFrame, or a path")
    with file.open("w", encoding="utf-8") as written:
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
                raise UserError(f"{key} row {number} is no dict with names of columns: {row!r:.80}")
            try:
                written.write(json.dumps(dict(row), default=_to_plain) + "\n")
            except (TypeError, ValueError, RecursionError) as error:
                place = next(name for name, value in row.items() if not _has_json(value))
                why = "is nested too deep" if isinstance(error, RecursionError) else f"holds what JSON has not: {error}"
                raise UserError(
                    f'{key} row {number} column "{place}" {why}\nmake it text, a number, a list or a dict; images and dates go in a '
                    "datasets.Dataset"
                ) from error


def _has_json(value: Any) -> bool:
    try:
        json.dumps(value, default=_to_plain)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _to_plain(value: Any) -> Any:
    """A number or an array of numpy or torch as plain Python."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
