"""Builds the stream of training rows and the held-out rows from the section `data` of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlkit.config.eval_section import list_second_opinions
from rlkit.config.recipe import ENVIRONMENT, Recipe
from rlkit.config.sections import RowsSection, SourceSection
from rlkit.data.columns import Columns, PromptReader, RowReader
from rlkit.data.completions import DemonstrationReader, PairReader, RatedReader
from rlkit.data.cursor import Cursor
from rlkit.data.messages import read_tools
from rlkit.data.offline_rows import DemonstrationSet, PairSet, RatedSet
from rlkit.data.renderer import Renderer
from rlkit.data.row_check import check_once
from rlkit.data.sources import is_on_hub, open_rows
from rlkit.data.stream import PromptSet, RowSet, Stream
from rlkit.errors import UserError
from rlkit.grading.references import REFERENCE_CHECKS
from rlkit.rewarding.calling import needs_answer
from rlkit.rewarding.spec import RewardSpec
from rlkit.rollout.records import name_split

Kind = Literal["prompts", "pairs", "rated", "demonstrations"]
READERS: dict[Kind, Callable[..., RowReader[Any]]] = {
    "prompts": PromptReader,
    "pairs": PairReader,
    "rated": RatedReader,
    "demonstrations": DemonstrationReader,
}
SETS: dict[Kind, Callable[..., RowSet[Any]]] = {
    "prompts": PromptSet,
    "pairs": PairSet,
    "rated": RatedSet,
    "demonstrations": DemonstrationSet,
}
PROBED_ROWS = 100  # made into tokens before anything is written, so that what a chat template refuses is found at the start
OF_SOURCE = ("chat", "system", "template", "answer_pattern")  # keys of `data` that a source may set for itself


def choose_kind(recipe: Recipe) -> Kind:
    """What a row of the data is to this recipe."""
    kind: Kind = recipe.algorithm.reads if recipe.offline_algorithm else "prompts"
    return kind


def open_sources(
    recipe: Recipe, kind: Kind, wanted: Sequence[str] = ("train", "test"), *, without_hub: bool = False
) -> dict[str, list[RowReader[Any]]]:
    """A reader of each source of each split, and of each set of eval.sets. Raises UserError for what is missing or cannot be read.

    without_hub: a split with a dataset of the hub, which may have to be downloaded, has no readers.
    """

    def skips(sources: Iterable[RowsSection]) -> bool:
        return without_hub and not recipe.offline and any(is_on_hub(source.path) for source in sources)

    splits = {split: getattr(recipe.data, split) or {} for split in wanted}
    opened = {split: build_readers(recipe, kind, split, {} if skips(found.values()) else found) for split, found in splits.items()}
    sets = {name_split(name): [] if skips([one]) else [build_set_reader(recipe, name)] for name, one in recipe.eval.sets.items()}
    return opened | sets


def build_datasets(
    recipe: Recipe, renderer: Renderer, kind: Kind = "prompts", opened: Mapping[str, list[RowReader[Any]]] | None = None
) -> tuple[Stream[Any], list[Any], str | None]:
    """The training stream, the held-out rows, and a note on rows that were left out and on what is odd about the others, if any.
    `opened`: what open_sources returned, where it was called before."""
    opened = open_sources(recipe, kind) if opened is None else opened
    readers = opened["train"]
    train = build_row_set(recipe, renderer, kind, readers)
    train.count_sample(PROBED_ROWS)
    stream = Stream(train, build_cursor(recipe, readers))
    notes = [describe_repetition(recipe, train), describe_labels(readers), describe_unread_tools(readers, renderer)]
    if kind == "prompts":
        notes.append(describe_missing_end(recipe, renderer))
    test: list[Any] = []
    if opened["test"]:
        held_out = build_row_set(recipe, renderer, kind, opened["test"])
        test, counts = held_out.read_all(recipe.eval.problems)
        notes.append(held_out.describe_skips(counts))
    return stream, test, "\n".join(filter(None, notes)) or None


def describe_repetition(recipe: Recipe, train: RowSet[Any]) -> str | None:
    """A note on data.epochs where some rows are left out: every step is full, so the others come up more often. Estimated on some rows."""
    if recipe.data.epochs is None:
        return None
    counts = train.count_sample()
    kept = counts.looked_at - counts.too_long - counts.bad_row
    if kept in (0, counts.looked_at):  # 0: the first step reports that no row can be used
        return None
    epochs, passes = recipe.data.epochs, recipe.data.epochs * counts.looked_at / kept
    return f"data.epochs={epochs:g} counts all rows; those not left out come up about {passes:.2g} times. {train.describe_skips(counts)}"


def describe_missing_end(recipe: Recipe, renderer: Renderer) -> str | None:
    """A note where no token ends a completion."""
    if renderer.eos_ids:
        return None
    return (
        f"model.path {recipe.model.path}: neither its tokenizer nor its generation_config.json (eos_token_id) names a token that ends a "
        f"completion, so that all of them end only at max_completion_tokens={recipe.max_completion_tokens}"
    )


def describe_labels(readers: Sequence[RowReader[Any]]) -> str | None:
    """A note where all rated completions have the same label, since nothing is learned from one side alone."""
    labels = {label for reader in readers if isinstance(reader, RatedReader) for label in reader.find_labels()}
    if len(labels) != 1:
        return None
    names = ", ".join(reader.rows.name for reader in readers)
    return f"{names}: every row has the label {str(labels.pop()).lower()}; the algorithm compares rows of both labels"


def describe_unread_tools(readers: Sequence[RowReader[Any]], renderer: Renderer) -> str | None:
    """A note where rows have tool schemas that the model never sees."""
    named = [reader.rows.name for reader in readers if read_tools(reader.first)]
    if not named or renderer.reads_tools:
        return None
    return f"{', '.join(named)}: rows have schemas in the column tools, and the chat template of the model does not read them"


def count_steps(recipe: Recipe, rows: int) -> Recipe:
    """data.epochs as a number of steps, the last of them whole; rows: of all training sources, with those that will be left out.

    Raises UserError where the recipe makes no sense with so many steps.
    """
    if recipe.data.epochs is None:
        return recipe
    counted = recipe.model_copy(update={"steps": max(1, round(recipe.data.epochs * rows / recipe.prompts_per_step))})
    for reason in counted.find_conflicts():
        raise UserError(reason)
    return counted


def build_readers(recipe: Recipe, kind: Kind, split: str, sources: Mapping[str, SourceSection]) -> list[RowReader[Any]]:
    """A reader of each source."""
    rewards = [*recipe.all_rewards.values(), *list_second_opinions(recipe).values()]
    return [
        build_reader(recipe, kind, source, f"data.{split}" + (f".{name}" if name else ""), split, rewards)
        for name, source in sources.items()
    ]


def build_set_reader(recipe: Recipe, name: str) -> RowReader[Any]:
    """A reader of a set of eval.sets."""
    one = recipe.eval.sets[name]
    common = [*recipe.all_rewards.values(), *list_second_opinions(recipe).values()]
    rewards = [one.grader] if isinstance(one.grader, RewardSpec) else common
    return build_reader(recipe, "prompts", one, f"eval.sets.{name}", "test", rewards)


def build_reader(recipe: Recipe, kind: Kind, source: RowsSection, key: str, split: str, rewards: Iterable[RewardSpec]) -> RowReader[Any]:
    """A reader of one source. key: of the recipe. split: where the source names none. rewards: those that score its rows."""
    data, rewards = recipe.data, [reward for reward in rewards if reward.path != ENVIRONMENT]
    checks = [REFERENCE_CHECKS[reward.path] for reward in rewards if reward.path in REFERENCE_CHECKS]
    asked = any(needs_answer(reward.path, reward.args) for reward in rewards)
    needs: dict[str, Any] = {"needs_answer": asked, "checks": checks} if kind == "prompts" else {}
    own = {key: value if (value := getattr(source, key)) is not None else getattr(data, key) for key in OF_SOURCE}
    columns = Columns(**(source.columns or data.columns).model_dump(), **own)
    place = {key: getattr(source, key) for key in ("path", "config", "split", "revision")}
    reader = READERS[kind](open_rows(place, split_default=split, offline=recipe.offline, key=key), columns, **needs)
    if data.on_bad_row == "stop":
        check_once(reader, (kind, place, columns, asked, [reward.path for reward in rewards]))
    return reader


def build_row_set(recipe: Recipe, renderer: Renderer, kind: Kind, readers: list[RowReader[Any]]) -> RowSet[Any]:
    """The rows of all sources as prompts or completions."""
    data = recipe.data
    limits = {"max_prompt_tokens": recipe.max_prompt_tokens, "on_long": data.on_long, "on_bad_row": data.on_bad_row}
    if kind != "prompts":
        limits["max_completion_tokens"] = recipe.max_completion_tokens
    return SETS[kind](readers, renderer, **limits)


def build_cursor(recipe: Recipe, readers: list[RowReader[Any]]) -> Cursor:
    """The order of the training rows: mixed by weight where a source has one, else one shuffle of all."""
    all_weights = [source.weight for source in recipe.data.train.values()]
    weights = None if all_weights == [None] * len(all_weights) else [weight or 1.0 for weight in all_weights]
    column = recipe.data.curriculum
    values = None if column is None else np.concatenate([reader.read_numbers(column) for reader in readers])
    return Cursor([len(reader) for reader in readers], recipe.seed, weights=weights, values=values)
