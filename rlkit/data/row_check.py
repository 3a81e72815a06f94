"""Looks at all rows in the files of a run before it starts: once, until the files, their columns, the rewards or this code change."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlkit import __version__, data, grading
from rlkit.data.columns import RowReader
from rlkit.errors import UserError
from rlkit.runtime.cache import find_cache_folder

FOLDER = "checked_rows"  # in the cache folder of rlkit; an empty file for each check that found nothing
LONG = 500_000  # rows that are announced: about five seconds
FIRST_ROWS = 100_000  # of rows that lie in no file: looked at each time, about a second; later ones as they are read
FIRST_OF_ONE_FORM = 100


def check_once(reader: RowReader[Any], settings: object) -> None:
    """Raises BadRow for the first row that cannot be used. `settings`: all that decides this beside the rows; only its repr counts."""
    if not reader.rows.files:
        reader.check(FIRST_OF_ONE_FORM if reader.rows.of_one_form else FIRST_ROWS)
        return
    done = None
    with contextlib.suppress(UserError):  # a cache folder that cannot be written costs time, and no more
        done = find_cache_folder() / FOLDER / hash_check(reader.rows.files, settings)
    if done is not None and done.exists():
        return
    if len(reader) >= LONG and os.environ.get("RANK", "0") == "0":
        print(f"looking at the {len(reader):,} rows of {reader.rows.name}, once until they or their settings change", flush=True)
    reader.check()
    if done is not None:
        with contextlib.suppress(OSError):
            done.parent.mkdir(exist_ok=True)
            done.touch()


def hash_check(files: Iterable[Path], settings: object) -> str:
    """A digest of the files, the settings and the code that reads both."""
    sources = sorted(source for room in (data, grading) for source in Path(os.fspath(room.__path__[0])).glob("*.py"))
    digests = []
    for file in (*sources, *files):
        hasher = blake3(max_threads=blake3.AUTO)
        digests.append(hasher.update_mmap(file).hexdigest())
    return blake3(repr((__version__, digests, settings)).encode()).hexdigest()
