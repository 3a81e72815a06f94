"""`rlkit compare RUN RUN ...`: what differs in the recipes of runs, and what they came to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.cli.output import print_document, print_text
from rlkit.config.renamed import rename_keys
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.console import shorten
from rlkit.report.run_result import ABSENT, FIELDS, RunResult, find_runs, read_result
from rlkit.report.table import format_table

OF_THE_CALL = ("output_dir", "resume", "dry_run", "debug")  # keys that say nothing about a run
SHOWN_CHARACTERS = 40  # of a value of a recipe
NOTE = "best: the highest of several evaluations on the same rows, and therefore too high by chance; last has no such bias."


def run_compare(words: list[str], as_json: bool) -> int:
    """Prints the table of some runs. Returns the exit code, as rlkit.run."""
    return run.handle_errors(lambda: print_comparison(words, as_json), [])


def print_comparison(words: list[str], as_json: bool) -> int:
    """As run_compare. Raises UserError where a folder holds no run."""
    if not words:
        raise UserError("name the folders of runs: rlkit compare RUN RUN ...")
    folders = [folder for word in words for folder in find_runs(Path(word).expanduser())]
    results = [read_result(folder) for folder in dict.fromkeys(folders)]
    differences = find_differences([result.recipe for result in results])
    if as_json:
        print_document({"runs": [to_document(result) for result in results], "differences": differences})
        return EXIT_DONE
    names = [f"{number}  {result.folder}" for number, result in enumerate(results, start=1)]
    changed = [[key, *map(show_value, values)] for key, values in differences.items()]
    rows = [[label, *map(show, results)] for label, show in FIELDS.items()]
    lines = [["", *map(str, range(1, len(results) + 1))], *changed, *(row for row in rows if set(row[1:]) != {ABSENT})]
    note = [NOTE] if any(result.held_out for result in results) else []
    print_text("\n\n".join(["\n".join(names), *map(format_table, split_columns(lines, shutil.get_terminal_size().columns)), *note]))
    return EXIT_DONE


def split_columns(lines: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """A table as several ones of at most so many characters a line, each with the first column; a column is never split."""
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        if blocks[-1] and widths[0] + sum(widths[inner] for inner in blocks[-1]) + widths[column] - 2 > width:
            blocks.append([])
        blocks[-1].append(column)
    return [[[line[column] for column in (0, *block)] for line in lines] for block in blocks]


def find_differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys whose values differ, with the value of each recipe; ABSENT where a recipe has no such key."""
    flat = [dict(flatten(rename_keys(recipe))) for recipe in recipes]
    keys = dict.fromkeys(key for recipe in flat for key in recipe if key not in OF_THE_CALL)
    values = {key: [recipe.get(key, ABSENT) for recipe in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def flatten(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of all that a recipe sets."""
    pairs: list[tuple[str, Any]] = []
    for key, value in section.items():
        inside = flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
        pairs += inside or [(f"{prefix}{key}", value)]
    return pairs


def to_document(result: RunResult) -> dict[str, Any]:
    """A run as `--json` prints it."""
    held_out = {name: found and asdict(found) for name, found in (("first", result.first), ("best", result.best), ("last", result.last))}
    names = ("state", "step", "steps", "reward", "loss", "seconds_per_step", "tokens_per_second")
    return {
        "folder": str(result.folder),
        "recipe": result.recipe.get("recipe"),
        **{name: getattr(result, name) for name in names},
        "held_out": {"measure": result.measure, **held_out},
    }


def show_value(value: Any) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    return shorten(text, SHOWN_CHARACTERS)
