"""Rows of a recipe's data as the run would read them: columns, rendered prompts, answers, what is left out. Loads a tokenizer, no model.

Left out: the order in which a run takes its training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rlkit.assembly.base_model import build_renderer, find_dtype, find_snapshot, locate_model
from rlkit.assembly.datasets import build_row_set, choose_kind
from rlkit.builtin.model import ensure_tokenizer
from rlkit.config.recipe import Recipe
from rlkit.data.columns import RowReader
from rlkit.data.renderer import Renderer
from rlkit.data.stream import Counts, Prompt, RowSet, SkipReason
from rlkit.errors import UserError
from rlkit.runtime.model_path import is_hub_name, parse_model_path

LOOKED_AT = 1000  # rows, evenly spread, among which those that are left out are counted
MOST_SKIPPED = 5  # that are named
WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth"]
PARTS = ("prompt", "chosen", "rejected", "completion")  # of a row with completions


@dataclass(frozen=True)
class TextView:
    """What the model gets, with its special tokens, and the number of tokens."""

    text: str
    tokens: int


@dataclass(frozen=True)
class RowView:
    """A row: its texts by name, the answer for the rewards, or why the run leaves it out. desirable: of a rated completion."""

    name: str
    parts: Mapping[str, TextView]
    answer: Any = None
    desirable: bool | None = None
    cut: bool = False
    left_out: str | None = None


@dataclass(frozen=True)
class SourceView:
    """A source: its rows, the columns of the first one, and which of them are used for what."""

    name: str
    rows: int
    columns: Sequence[str]
    used: Mapping[str, str]


@dataclass(frozen=True)
class SplitView:
    """All sources of a split. counts: of some rows, evenly spread; skipped: the first of those that are left out."""

    split: str
    sources: Sequence[SourceView]
    counts: Counts
    skipped: Sequence[RowView]
    shown: Sequence[RowView]


def view_split(recipe: Recipe, renderer: Renderer, split: str, readers: Sequence[RowReader[Any]], count: int) -> SplitView:
    """What a split holds, with its first `count` rows. Raises UserError for what stops a run."""
    rows = build_row_set(recipe, renderer, choose_kind(recipe), list(readers))
    sources = [SourceView(reader.rows.name, len(reader), list(reader.first), reader.name_columns()) for reader in readers]
    counts, skipped = Counts(), list[RowView]()
    for row in rows.pick_sample(LOOKED_AT):
        found = rows.get(row)
        counts = counts.add(found)
        if isinstance(found, SkipReason) and len(skipped) < MOST_SKIPPED:
            skipped.append(view_row(rows, renderer, row))
    shown = [view_row(rows, renderer, row) for row in range(min(count, len(rows)))]
    return SplitView(split, sources, counts, skipped, shown)


def view_row(rows: RowSet[Any], renderer: Renderer, row: int) -> RowView:
    """Row number `row`, counted through all sources. Raises UserError for a bad row that stops a run."""
    rows.first_bad = None
    found, name = rows.get(row), rows.describe_row(row)
    if isinstance(found, SkipReason):
        return RowView(name, {}, left_out=rows.first_bad if found is SkipReason.BAD_ROW else rows.limits)
    tokens = (
        {"prompt": found.tokens} if isinstance(found, Prompt) else {part: getattr(found, part) for part in PARTS if hasattr(found, part)}
    )
    parts = {part: TextView(renderer.decode(ids, special=True), len(ids)) for part, ids in tokens.items()}
    return RowView(name, parts, getattr(found, "answer", None), getattr(found, "desirable", None), found.cut)


def open_renderer(recipe: Recipe) -> Renderer:
    """Tokenizer and chat template, downloaded where they are not on this disk. Raises UserError as build_renderer."""
    found = find_renderer(recipe)
    if found is not None:
        return found
    place = parse_model_path(recipe.model.path)
    if place.gguf is not None:
        path = locate_model(recipe, find_dtype(recipe, torch.device("cpu")), main=False).path
    else:
        path = find_snapshot(place, recipe, WEIGHTS) if recipe.model.revision else place.place
    return build_renderer(recipe, path)


def find_renderer(recipe: Recipe) -> Renderer | None:
    """Tokenizer and chat template; None where they are not on this disk. Raises UserError as build_renderer."""
    path = recipe.model.path
    if Path(path).expanduser().is_dir():
        return build_renderer(recipe, path)
    if path == "builtin":
        with TemporaryDirectory() as made:  # looking writes nothing into the cache
            return Renderer(ensure_tokenizer(Path(made)), chat_template_kwargs=recipe.model.chat_template_kwargs, offline=True)
    folder = find_cached_model(path, recipe.model.revision)
    if folder is None or not any(folder.glob("tokenizer*")):
        return None
    return Renderer(folder, chat_template_kwargs=recipe.model.chat_template_kwargs, offline=True)


def find_cached_model(name: str, revision: str | None) -> Path | None:
    """The folder of a model of the hub in its cache, if it is one and is there. Raises UserError for what can be no name."""
    from huggingface_hub import try_to_load_from_cache

    if not is_hub_name(name):
        return None
    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError as error:
        raise UserError(f"model.path {name} is no folder here, and no name of the hub: {error}") from error
    return Path(file).parent if isinstance(file, str) else None
