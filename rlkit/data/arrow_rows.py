"""CSV, Parquet, Arrow and hub tables through `datasets`: Arrow files in its own cache, mapped into memory. Only this file imports it."""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlkit.data.availability import is_hub_reachable
from rlkit.data.json_rows import HEAD_BYTES, refuse_utf16
from rlkit.data.rows import Row, Rows, truncate
from rlkit.errors import UserError

READERS = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}  # suffix -> name of the reader in `datasets`
SCAN_ROWS = 1000  # rows turned into Python objects at once


class ArrowRows(Rows):
    """The rows of one datasets.Dataset."""

    def __init__(self, name: str, table: Any) -> None:
        self.name = name
        self._table = table

    @property
    def files(self) -> Sequence[Path]:
        """The Arrow files from which the table is mapped, in the cache of `datasets` or in a saved folder."""
        return [Path(file["filename"]) for file in self._table.cache_files]

    def __len__(self) -> int:
        return len(self._table)

    def read_row(self, index: int) -> Row:
        return dict(self._table[index])

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        chosen = [column for column in self._table.column_names if columns is None or column in columns]
        table = self._table.select_columns(chosen) if chosen else self._table  # of no column there would be no rows
        for block in table.iter(batch_size=SCAN_ROWS):
            names = list(block)
            for values in zip(*block.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def load_files(name: str, files: Sequence[Path]) -> Rows:
    """Rows of files of one format. Raises UserError where they cannot be read."""
    datasets = _import_datasets()
    reader = READERS[files[0].suffix]
    columns = [_read_csv_header(name if len(files) == 1 else f"{name}: {path}", path) for path in files] if reader == "csv" else []
    for path, others in zip(files[1:], columns[1:], strict=False):
        if set(others) != set(columns[0]):
            raise UserError(
                f"{name}: {path} has the columns {', '.join(others)}, and {files[0]} has {', '.join(columns[0])}; make them the same"
            )
    # Every CSV value stays the text it is: "007" no number, "NA" no hole; only an empty cell is none.
    text = {column: datasets.Value("string") for column in columns[0]} if columns else {}
    extra = {"features": datasets.Features(text), "keep_default_na": False, "na_values": [""]} if columns else {}
    if reader == "parquet":
        extra["batch_size"] = SCAN_ROWS  # else it is taken from the first group of rows, and one without a row is an error
    try:
        table = datasets.load_dataset(
            reader,
            data_files=[str(path) for path in files],
            split="train",
            description=_hash_files(files),  # part of the cache's key, which otherwise goes by path and time of change alone
            **extra,
        )
    except Exception as error:  # pyarrow, pandas and datasets each raise their own kinds for a file they cannot read
        why = _describe_root_cause(error)
        if "corresponds to no data" in why:  # how datasets puts it
            raise UserError(f"{name} is empty: it holds no row") from error
        raise UserError(f"{name} cannot be read as {reader}: {why}") from error
    return ArrowRows(name, table)


def load_saved_dataset(name: str, folder: Path, split: str) -> Rows:
    """Rows of a folder written by datasets' save_to_disk; `split` chooses where it holds several."""
    datasets = _import_datasets()
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a half-written folder fails in any of the libraries below
        raise UserError(f"{name} cannot be read as a saved dataset: {_describe_root_cause(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f'{name} has no split "{split}" (splits: {", ".join(saved)}); name one: {folder}@{next(iter(saved))}')
        saved = saved[split]
    return ArrowRows(name, saved)


def load_hub_dataset(name: str, repo: str, config: str | None, split: str, revision: str | None, *, offline: bool) -> Rows:
    """Rows of a dataset of the Hugging Face hub; offline, of its copy in the cache."""
    online = not offline and is_hub_reachable()
    if not online:
        _go_offline()
    datasets = _import_datasets()
    try:
        table = datasets.load_dataset(repo, config, split=split, revision=revision)
    except Exception as error:  # network, hub, builder and split errors have no common base
        why = _describe_root_cause(error) if online else "the hub cannot be asked (offline=true, or no network) and it is not in the cache"
        raise UserError(
            f"{name} is no file or folder here, and as a dataset of the hub it cannot be loaded: {why}\n"
            "expected a file, a folder, or a dataset of the hub as name, name:config@split#revision"
        ) from error
    return ArrowRows(name, table)


def _import_datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs about a broken file is in the error that it raises
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it reports every local file that it reads to a server
    return datasets


def _go_offline() -> None:
    """Both libraries read the variable when they are imported, which may have happened already."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def _read_csv_header(name: str, path: Path) -> list[str]:
    """The header. Raises UserError for a row with more or fewer fields, which pandas would shift under other columns without a word."""
    csv.field_size_limit(sys.maxsize)
    header: list[str] = []
    with path.open("rb") as binary:
        refuse_utf16(name, binary.read(HEAD_BYTES))
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader, line = csv.reader(file), 1
        for row in reader:
            if not "".join(row).strip() and len(row) < 2:
                row = []  # a blank line is no row
            if header and row and len(row) != len(header):
                raise UserError(
                    f"{name} line {line} has {_count_fields(row)}, and the header has {_count_fields(header)}: {truncate(repr(row))}\n"
                    f'header: {", ".join(header)}; put a field that holds a comma, a quote or a new line in quotes ("a, b")'
                )
            header, line = header or row, reader.line_num + 1  # a row with quotes may be many lines long
    if not header:
        raise UserError(f"{name} is empty: {path} has no header line")
    twice = sorted({column for column in header if header.count(column) > 1 and column})
    if twice:
        raise UserError(f"{name} has the column {', '.join(twice)} more than once (header: {', '.join(header)}); name each once")
    return [column or f"Unnamed: {number}" for number, column in enumerate(header)]  # as pandas does, and writes an index without a name


def _count_fields(row: Sequence[str]) -> str:
    return f"{len(row)} field{'' if len(row) == 1 else 's'}"


def _hash_files(files: Sequence[Path]) -> str:
    digest = blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _describe_root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return truncate(" ".join(str(error).split()), 300) or type(error).__name__
