"""How many held-out problems stand in the training rows: a line of the header, and what data.max_overlap refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, islice
from typing import Any

from rlkit.config.recipe import Recipe
from rlkit.data.columns import PromptReader
from rlkit.data.overlap import Overlap, find_overlaps
from rlkit.data.row_check import hash_check
from rlkit.errors import UserError
from rlkit.rollout.records import name_split
from rlkit.runtime.cache import find_cache_folder
from rlkit.runtime.ranks import Ranks

FOLDER = "overlap"  # in the cache folder of rlkit; a file for each comparison
MANY_ROWS = 20_000  # that are compared once, until their files change: about a second
NAMED_ROWS = 3  # in a refusal

Sources = Mapping[str, Sequence[Any]]  # PromptReader by split; RowReader where the algorithm is offline


def describe_overlap(recipe: Recipe, ranks: Ranks, sources: Sources, show_phase: Callable[[str], None]) -> list[tuple[str, str]]:
    """A line of the header; none where no problems are held out, or where the rows are completions.

    sources: of all splits and sets. Raises UserError where a set overlaps by more than data.max_overlap. A collective call.
    """
    if recipe.offline_algorithm or not any(found for split, found in sources.items() if split != "train"):
        return []
    show_phase("comparing training rows with held-out problems")
    overlaps = ranks.gather(measure_overlaps(recipe, sources) if ranks.main else None)[0]
    limit = recipe.data.max_overlap
    for name, found in overlaps.items():
        if limit is not None and found.share > limit:
            rows = ", ".join(describe_training_row(sources["train"], row) for row in found.rows[:NAMED_ROWS])
            raise UserError(
                f"{name}: {describe_share(found)}, more than data.max_overlap={limit:g} allows: {rows}"
                f"{', ...' if len(found.rows) > NAMED_ROWS else ''}; take them out of data.train, or set data.max_overlap=null"
            )
    return [("overlap", "; ".join(f"{name}: {describe_share(found)}" for name, found in overlaps.items()))]


def measure_overlaps(recipe: Recipe, sources: Sources) -> dict[str, Overlap]:
    """The overlap of data.test and of each set, by key. Large data is compared once, until its files change."""
    limits = {"test": recipe.eval.problems, **{name_split(name): one.problems for name, one in recipe.eval.sets.items()}}
    readers = [reader for found in sources.values() for reader in found]
    done = None
    if sum(map(len, readers)) > MANY_ROWS and all(reader.rows.files for reader in readers):
        with contextlib.suppress(UserError):  # a cache folder that cannot be written costs time, and no more
            columns = [(split, reader.name_columns()) for split, found in sources.items() for reader in found]
            files = [file for reader in readers for file in reader.rows.files]
            done = find_cache_folder() / FOLDER / hash_check(files, (columns, limits))
    if done is not None and done.exists():
        with contextlib.suppress(OSError, ValueError, TypeError):
            return {name: Overlap(**{**found, "rows": tuple(found["rows"])}) for name, found in json.loads(done.read_text()).items()}
    texts = {
        "data.test" if split == "test" else split: list(islice((text for reader in sources[split] for text in reader.scan_texts()), limit))
        for split, limit in limits.items()
        if sources.get(split)
    }
    found = find_overlaps(texts, (text for reader in sources["train"] for text in reader.scan_texts()))
    if done is not None:
        with contextlib.suppress(OSError):
            done.parent.mkdir(exist_ok=True)
            done.write_text(json.dumps({name: asdict(overlap) for name, overlap in found.items()}))
    return found


def describe_share(found: Overlap) -> str:
    if not found.shared:
        return f"none of {found.problems:,} problems stands in the training rows"
    rows = f"{len(found.rows):,} training row{'s' if len(found.rows) > 1 else ''}"
    return f"{found.shared:,} of {found.problems:,} problems ({found.share:.1%}) stand in {rows}"


def describe_training_row(readers: Sequence[PromptReader], row: int) -> str:
    """The name of a row, counted through all sources."""
    ends = list(accumulate(len(reader) for reader in readers))
    source = next(number for number, end in enumerate(ends) if row < end)
    return readers[source].rows.describe_row(row - (ends[source - 1] if source else 0))
