"""`rlkit data show NAME [n=3] [split=train|test] [key=value ...]`: rows as a run with this recipe would read them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict

from rlkit import run
from rlkit.assembly.data_view import RowView, SplitView, open_renderer, view_split
from rlkit.assembly.datasets import choose_kind, open_sources
from rlkit.cli.output import print_document, print_text
from rlkit.cli.words import parse_count, split_own_keys
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.data.rows import show
from rlkit.errors import EXIT_DONE, UserError
from rlkit.runtime.library_settings import configure_libraries

DEFAULT_SHOWN = 3
SHOWN_CHARACTERS = 3000  # of a text
SPLITS = ("train", "test")


def run_data_show(words: list[str], as_json: bool) -> int:
    """Prints the rows. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return run.handle_errors(lambda: print_data(words, as_json), words)


def print_data(words: list[str], as_json: bool) -> int:
    """As run_data_show. Raises UserError."""
    own, rest = split_own_keys(words, ("n", "split"))
    count, split = parse_count(own.get("n", str(DEFAULT_SHOWN))), own.get("split")
    if split not in (None, *SPLITS):
        raise UserError(f"split={split} is not valid: it must be {' or '.join(SPLITS)}")
    _, overrides, folder = run.parse_arguments(rest)
    recipe = read_recipe(compose_config(overrides, folder))
    configure_libraries(offline=recipe.offline)
    readers = open_sources(recipe, choose_kind(recipe))
    if split is not None and not readers[split]:
        raise UserError(f"split={split}: this recipe has no data.{split}")
    renderer = open_renderer(recipe)
    views = [view_split(recipe, renderer, name, found, count) for name, found in readers.items() if found and split in (None, name)]
    if as_json:
        print_document({"recipe": recipe.recipe, "splits": {view.split: asdict(view) for view in views}})
    else:
        print_text("\n\n".join("\n".join(format_split(view)) for view in views))
    return EXIT_DONE


def format_split(view: SplitView) -> Iterator[str]:
    for source in view.sources:
        yield f"{source.name}: {source.rows:,} rows"
        yield f"  columns  {', '.join(source.columns)}"
        yield f"  used     {', '.join(f'{column} as {what}' for what, column in source.used.items())}"
    yield from format_counts(view)
    for row in view.shown:
        yield ""
        yield from format_row(row)


def format_counts(view: SplitView) -> Iterator[str]:
    """How many rows are left out or cut, and why; of large data by a sample."""
    counts, total = view.counts, sum(source.rows for source in view.sources)
    looked = f"of {counts.looked_at:,} looked at" if total > counts.looked_at else f"of {total:,}"
    yield f"left out: {counts.too_long + counts.bad_row:,} {looked}" + (f"; cut: {counts.cut:,}" if counts.cut else "")
    yield from (f"  {row.name}: {shorten_reason(row)}" for row in view.skipped)
    if counts.too_long + counts.bad_row > len(view.skipped):
        yield "  ..."


def shorten_reason(row: RowView) -> str:
    """Why a row is left out, without its name."""
    return str(row.left_out).removeprefix(row.name).lstrip(": ")


def format_row(row: RowView) -> Iterator[str]:
    if row.left_out is not None:
        yield f"{row.name}: left out, {shorten_reason(row)}"
        return
    yield row.name + (" (its beginning is cut)" if row.cut else "")
    for part, view in row.parts.items():
        yield f"  {part}, {view.tokens:,} tokens"
        text = view.text if len(view.text) <= SHOWN_CHARACTERS else f"{view.text[:SHOWN_CHARACTERS]} ..."
        yield textwrap.indent(text, "    ", lambda line: True)
    if row.desirable is not None:
        yield f"  label  {'desirable' if row.desirable else 'undesirable'}"
    if "chosen" not in row.parts and "completion" not in row.parts:
        yield f"  answer  {show(row.answer, SHOWN_CHARACTERS)}"
