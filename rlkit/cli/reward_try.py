"""`rlkit reward try`: the scores of a recipe's rewards for rows of its data, or for the samples of a run. Loads no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.assembly.datasets import build_readers
from rlkit.cli.words import parse_count, split_own_keys
from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config
from rlkit.data.columns import ANSWER_COLUMNS, PromptRow, RowReader, get_column
from rlkit.errors import EXIT_DONE, UserError
from rlkit.rewarding.trial import run_trial
from rlkit.rollout.records import SET_SPLIT
from rlkit.rollout.sampler import build_reward_item
from rlkit.runtime.library_settings import configure_libraries
from rlkit.runtime.redaction import redact_message

OWN_KEYS = ("n", "samples")  # all other key=value are overrides of the recipe
DEFAULT_ROWS = "20"
NO_MODEL = "model.path=builtin"  # none is loaded; a recipe may have none of its own
Items = list[tuple[int, dict[str, Any]]]  # number of the data row, and what a reward gets


def run_try(arguments: list[str]) -> int:
    """Print the table of scores. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return run.handle_errors(lambda: print_trial(arguments), arguments)


def print_trial(arguments: list[str]) -> int:
    """As run_try. Raises UserError."""
    own, words = split_own_keys(arguments, OWN_KEYS)
    count = parse_count(own.get("n", DEFAULT_ROWS))
    _, overrides, folder = run.parse_arguments(words)
    recipe = recipes.read_recipe(compose_config([NO_MODEL, *overrides], folder))
    configure_libraries(offline=recipe.offline)
    rewards = {name: reward for name, reward in (recipe.rewards or {}).items() if name != recipes.ENVIRONMENT}
    if not rewards or recipe.rewarding is None:
        raise UserError(
            "this recipe has no rewards to try; choose one with an algorithm that samples and rewards of its own: recipe=grpo_math"
        )
    items = read_sample_items(recipe, Path(own["samples"]), count) if "samples" in own else build_row_items(recipe, count)
    print(redact_message(run_trial(rewards, recipe.rewarding, items)))
    return EXIT_DONE


def build_row_items(recipe: recipes.Recipe, count: int) -> Items:
    """The first rows of data.train, each with the completions that it brings along."""
    reader = build_readers(recipe, "prompts", "train", recipe.data.train)[0]
    items = []
    for number in range(min(count, len(reader))):
        row = reader.read(number)
        answers = row.answer if isinstance(row.answer, list) else [] if row.answer is None else [row.answer]
        texts = [text for column in ANSWER_COLUMNS if isinstance(text := get_column(row.columns, column), str) and text != row.answer]
        completions = [*(f"\\boxed{{{answer}}}" for answer in answers), *texts, ""]
        items += [(number, build_reward_item(row) | {"completion": completion}) for completion in completions]
    return items


def read_sample_items(recipe: recipes.Recipe, file: Path, count: int) -> Items:
    """The first samples of a run, each with the columns of its data row."""
    try:
        with file.open(encoding="utf-8") as lines:
            own = (row for line in lines if not str((row := json.loads(line))["split"]).startswith(SET_SPLIT))
            rows = [row for _, row in zip(range(count), own, strict=False)]  # those of eval.sets have graders of their own
        samples = [(row["split"], row["key"][0], row["completion"], row.get("stop")) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"samples={file} cannot be read as the samples.jsonl of a run: {error}") from error
    splits = {split for split, *_ in samples}
    sources = {split: sources for split in ("train", "test") if (sources := getattr(recipe.data, split))}
    for split in splits - sources.keys():
        raise UserError(f"samples={file} holds samples of data.{split}, which the recipe does not have (it has: {', '.join(sources)})")
    readers = {split: build_readers(recipe, "prompts", split, sources[split]) for split in splits}
    return [
        (row, build_reward_item(read_row(readers[split], row)) | {"completion": text, "stop": stop}) for split, row, text, stop in samples
    ]


def read_row(readers: Sequence[RowReader[PromptRow]], row: int) -> PromptRow:
    """Row number `row` of several sources, counted through all of them."""
    for reader in readers:
        if row < len(reader):
            return reader.read(row)
        row -= len(reader)
    raise UserError(f"samples= is of a run with other data: this recipe's data is {row + 1} rows too short")
