"""From a source in a recipe to rows: `builtin`, a file, a folder, or a dataset of the Hugging Face hub.

    builtin, builtin:reading        the built-in tasks: sums, and one about a text
    data/train.jsonl                JSONL, JSON, CSV, Parquet or Arrow
    data/gsm8k, data/gsm8k@test     a folder of such files, or one written by datasets' save_to_disk
    openai/gsm8k:main@train#e53f0   the hub: name, then :config, @split, #revision where wanted
The same as a mapping: {path: openai/gsm8k, config: main, split: train, revision: e53f0}. A path that exists is never searched on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rlkit.data import arrow_rows
from rlkit.data.availability import suggest_paths
from rlkit.data.json_rows import JsonRows
from rlkit.data.rows import JoinedRows, ListRows, Row, Rows
from rlkit.errors import UserError

BUILTIN = "builtin"
SUMS, READING = "sums", "reading"  # its tasks
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_SUFFIXES, *arrow_rows.READERS)
SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
WITH_PARTS = re.compile(r"(?P<path>[^@#]+?)(:(?P<config>[^@#/:]+))?(@(?P<split>[^@#]+))?(#(?P<revision>[^@#]+))?")


@dataclass(frozen=True)
class DataSource:
    """Where rows lie."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


def open_rows(spec: str | Mapping[str, object], *, split_default: str, offline: bool, key: str = "data.train") -> Rows:
    """The rows that `spec` names; `key` is the recipe's word for it, used in errors, `split_default` counts where no split is named.

    Raises UserError for what is missing, empty, broken, or on the hub while offline.
    """
    place = parse_source(spec, key)
    name = f"{key} {place.path}"
    split = place.split or split_default
    path = Path(place.path).expanduser()
    if place.path == BUILTIN and not path.exists():
        rows = _load_builtin(name, place.config or SUMS, split)
    elif path.is_file():
        if place.split:
            raise UserError(f'{name} is one file and has no split "{place.split}"; leave @{place.split} away')
        rows = _load_file(name, path)
    elif path.is_dir():
        rows = _load_folder(name, path, split, named=place.split is not None)
    elif _may_be_on_hub(place.path):
        rows = arrow_rows.load_hub_dataset(name, place.path, place.config, split, place.revision, offline=offline)
    else:
        raise UserError(f"{name} does not exist{suggest_paths(path, _is_data, 'file or folder of data')}")
    if len(rows) == 0:
        raise UserError(f"{name} is empty: it holds no row")
    return rows


def is_on_hub(spec: str) -> bool:
    """Whether a source is a dataset of the hub, if it is anything: no file or folder here, and not built in."""
    place = parse_source(spec)
    return place.path != BUILTIN and not Path(place.path).expanduser().exists() and _may_be_on_hub(place.path)


def parse_source(spec: str | Mapping[str, object], key: str = "data.train") -> DataSource:
    """The parts of a spec. Raises UserError for a mapping with other keys than those of Place."""
    if isinstance(spec, Mapping):
        known = [field.name for field in fields(DataSource)]
        unknown = [str(word) for word in spec if word not in known]
        if unknown or not spec.get("path"):
            wrong = f'has the unknown key "{unknown[0]}"' if unknown else "has no path"
            raise UserError(f"{key} {wrong} (known: {', '.join(known)})")
        given = {str(word): str(value) for word, value in spec.items() if value is not None}
        return replace(parse_source(given.pop("path"), key), **given)
    if Path(spec).expanduser().exists():
        return DataSource(spec)
    parts = WITH_PARTS.fullmatch(spec)
    if parts is None:
        raise UserError(f'{key} "{spec}" is not a data source; expected {BUILTIN}, a file, a folder, or name:config@split#revision')
    return DataSource(parts["path"], parts["config"], parts["split"], parts["revision"])


def _load_builtin(name: str, task: str, split: str) -> Rows:
    """train and test; of sums also train_pairs, train_rated and train_demonstrations, which are made of the same problems."""
    from rlkit.builtin import reading, sums

    made: dict[str, dict[str, Callable[[str], list[Row]]]] = {
        SUMS: {
            "": sums.build_rows,
            "pairs": sums.build_pairs,
            "rated": sums.build_rated_rows,
            "demonstrations": sums.build_demonstration_rows,
        },
        READING: {"": reading.build_reading_rows},
    }
    if task not in made:
        raise UserError(f'{name}: there is no built-in task "{task}"; known are {", ".join(made)}')
    of, _, kind = split.partition("_")
    try:
        return ListRows(name, made[task][kind](of), of_one_form=True)
    except KeyError:
        kinds = ", ".join(filter(None, made[task])) or "nothing else"
        raise UserError(f"{name}: the built-in task {task} has no {kind!r}; after {of}_ it has {kinds}") from None
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def _load_file(name: str, path: Path) -> Rows:
    if path.suffix in JSON_SUFFIXES:
        return JsonRows(name, path)
    if path.suffix not in SUFFIXES:
        raise UserError(f'{name} ends in "{path.suffix}"; known are {", ".join(SUFFIXES)}')
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty: the file has 0 bytes")
    return arrow_rows.load_files(name, [path])


def _load_folder(name: str, folder: Path, split: str, *, named: bool) -> Rows:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return arrow_rows.load_saved_dataset(name, folder, split)
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file() and not path.name.startswith("."))
    if not files:
        raise UserError(f"{name} is a folder without data: no file in it ends in {', '.join(SUFFIXES)}")
    of_split = [path for path in files if split in _split_words(path.relative_to(folder))]
    if not of_split and (named or any(_split_words(path.relative_to(folder)) & set(SPLIT_NAMES) for path in files)):
        held = ", ".join(str(path.relative_to(folder)) for path in files[:5])
        raise UserError(f'{name} holds no file of the split "{split}" (files: {held}); name a file, or folder@split')
    chosen = of_split or files
    kinds = sorted({"json" if path.suffix in JSON_SUFFIXES else path.suffix for path in chosen})
    if len(kinds) > 1:
        raise UserError(f"{name} mixes formats ({', '.join(kinds)}); name one file, or keep one format in the folder")
    if kinds == ["json"]:
        tables: list[Rows] = [JsonRows(f"{name}/{path.relative_to(folder)}", path) for path in chosen]
        return tables[0] if len(tables) == 1 else JoinedRows(name, tables)
    return arrow_rows.load_files(name, chosen)


def _split_words(path: Path) -> set[str]:
    """The words of a relative path: train-00000-of-00002.parquet -> train, 00000, of, 00002, parquet."""
    return set(re.split(r"[^a-z0-9]+", str(path).lower()))


def _is_data(path: Path) -> bool:
    return path.is_dir() or path.suffix in SUFFIXES


def _may_be_on_hub(path: str) -> bool:
    return HUB_NAME.fullmatch(path) is not None and not path.endswith(SUFFIXES)
