"""`rlkit recipes [WORD]`: the recipes that can be chosen, each with its comment, algorithm, data and model."""

from __future__ import annotations

import textwrap
from pathlib import Path

from rlkit import run
from rlkit.cli.output import get_text_width, print_document, print_text
from rlkit.config.catalog import RecipeEntry, find_recipes
from rlkit.errors import EXIT_DONE, UserError


def run_recipes(word: str, folder: Path | None, as_json: bool) -> int:
    """Prints the recipes that have a word in them. Returns the exit code, as rlkit.run."""
    return run.handle_errors(lambda: print_recipes(word, folder, as_json), [])


def print_recipes(word: str, folder: Path | None, as_json: bool) -> int:
    """As run_recipes. Raises UserError."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"--config-dir {folder} is not a folder")
    found = find_recipes(word, folder and folder.absolute())
    if as_json:
        print_document({"recipes": [vars(entry) for entry in found]})
    else:
        print_text("\n".join(map(format_recipe, found)))
    return EXIT_DONE


def format_recipe(entry: RecipeEntry) -> str:
    """Its name, what it is made of, and its description below."""
    text = textwrap.fill(entry.description, get_text_width(), initial_indent="    ", subsequent_indent="    ")
    return f"{entry.name}  (algorithm {entry.algorithm}, data {entry.data}, model {entry.model})" + (f"\n{text}" if text else "")
