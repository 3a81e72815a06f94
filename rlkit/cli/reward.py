"""Rewards by hand.

rlkit reward try recipe=NAME [n=20] [samples=FILE] [key=value ...]   what a recipe's rewards say about rows of its data
rlkit reward retry FILE      call a reward once more on the sample that stopped a run, in this process

`try` loads no model. Without `samples`, the samples.jsonl of a run, a row stands for the completions that it brings along: its answer in a
box (of a list of right ones, each), the text that the answer was cut out of, and nothing.
"""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.assembly.datasets import open_readers
from rlkit.config import recipe as recipes
from rlkit.data.columns import ANSWER_COLUMNS, PromptRow, lookup
from rlkit.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER, UserError
from rlkit.rewarding import worker
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.rewarding.trial import trial
from rlkit.rollout.collector import given
from rlkit.runtime.library_settings import quiet


def main(arguments: list[str]) -> int:
    """Exit code: 0 done; 1 where a retried reward fails again; 2 for a mistake of the user's."""
    command, *rest = arguments or ["--help"]
    quiet(offline=False)
    try:
        if command == "try":
            return attempt(rest)
        if command == "retry" and len(rest) == 1:
            return retry(Path(rest[0]))
        if command in ("-h", "--help"):
            print(__doc__)
            return EXIT_DONE
        raise UserError(f"unknown: {' '.join([command, *rest])}; valid: try recipe=NAME ..., retry FILE")
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER


def attempt(arguments: list[str]) -> int:
    """Print the table of a trial."""
    own = {key: value for key, sign, value in (argument.partition("=") for argument in arguments) if key in ("n", "samples")}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in own]
    count = own.get("n", "20")
    if not count.isdigit() or int(count) < 1:
        raise UserError(f"n={count} is not valid: it should be a whole number of rows from 1 on")
    recipe = recipes.read_recipe(run.compose(overrides, None))
    quiet(offline=recipe.offline)
    if not recipe.rewards:
        raise UserError("this recipe has no rewards to try; name one of an algorithm that samples: recipe=grpo_math")
    settings = RewardSettings(**{**recipe.rewarding.model_dump(), "workers": recipe.rewarding.workers or os.cpu_count() or 1})
    items = stored(recipe, Path(own["samples"]), int(count)) if "samples" in own else brought(recipe, int(count))
    print(trial([RewardSpec(name=name, **reward.model_dump()) for name, reward in recipe.rewards.items()], settings, items))
    return EXIT_DONE


def brought(recipe: recipes.Recipe, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The first rows of data.train, each with the completions that it stands for."""
    reader = open_readers(recipe, "prompts", "train", recipe.data.train)[0]
    items = []
    for number in range(min(count, len(reader))):
        row = reader.read(number)
        answers = row.answer if isinstance(row.answer, list) else [] if row.answer is None else [row.answer]
        texts = [text for column in ANSWER_COLUMNS if isinstance(text := lookup(row.columns, column), str) and text != row.answer]
        items += [(number, given(row) | {"completion": said}) for said in (*(f"\\boxed{{{one}}}" for one in answers), *texts, "")]
    return items


def stored(recipe: recipes.Recipe, file: Path, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The first samples of a run, with the columns of the rows that they answer."""
    try:
        with file.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
        places = [(sample["split"], sample["key"][0], sample["completion"], sample.get("stop")) for sample in samples]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"samples={file} cannot be read as the samples.jsonl of a run: {error}") from error
    sources = {split: sources for split in ("train", "test") if (sources := getattr(recipe.data, split))}
    for split in {place[0] for place in places} - sources.keys():
        raise UserError(f"samples={file} holds samples of data.{split}, which the recipe does not have (it has: {', '.join(sources)})")
    readers = {split: open_readers(recipe, "prompts", split, sources[split]) for split in {place[0] for place in places}}
    return [(row, given(row_of(readers[split], row)) | {"completion": text, "stop": stop}) for split, row, text, stop in places]


def row_of(readers: list[Any], row: int) -> PromptRow:
    """Row `row` of several sources, one after the other."""
    for reader in readers:
        if row < len(reader):
            found: PromptRow = reader.read(row)
            return found
        row -= len(reader)
    raise UserError(f"samples= is of another run: the data has {row} rows too few for it")


def retry(file: Path) -> int:
    """Ask the reward in this process. Past twice its deadline it is ended, and where it was is printed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        spec, items = RewardSpec(**content["reward"]), pickle.loads(base64.b64decode(content["pickled"]))
        folder = Path(content["working_directory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no file that a run wrote to be tried again: {error}") from error
    if not folder.is_dir():
        raise UserError(f"{file} was written in {folder}, which is gone: make it again, or change working_directory in the file")
    os.chdir(folder)
    print(f"rewards.{spec.name} ({spec.path}), sample {content['sample']}, {len(items)} completion(s); then: {content['outcome']['kind']}")
    faulthandler.dump_traceback_later(2 * content["deadline"] * len(items), exit=True)
    outcomes = worker.run_here(spec, RewardSettings(deadline=content["deadline"]), items)
    faulthandler.cancel_dump_traceback_later()
    for outcome in outcomes:
        print(f"now: {outcome.kind.value} {'' if outcome.value is None else outcome.value} ({outcome.seconds:.3f} s)\n{outcome.detail}")
    return EXIT_FAILED if any(outcome.kind.failed for outcome in outcomes) else EXIT_DONE
