"""From the recipe's section `data` to a stream of training rows and the held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rlkit.data.columns import Columns, PromptReader
from rlkit.data.cursor import Cursor
from rlkit.data.preferences import DemonstrationSet, PairSet, RatedSet
from rlkit.data.renderer import Renderer
from rlkit.data.sources import open_rows
from rlkit.data.stream import PromptSet, RowSet, Stream
from rlkit.data.written import DemonstrationReader, PairReader, RatedReader
from rlkit.recipe import Recipe

Kind = Literal["prompts", "pairs", "rated", "demonstrations"]
READERS: dict[Kind, Callable[..., Any]] = {
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


def sourced(recipe: Recipe, renderer: Renderer, kind: Kind = "prompts") -> tuple[Stream[Any], list[Any], str | None]:
    """The training stream, the held-out rows, and a line on those left out, if any."""
    data = recipe.data
    train = opened(recipe, renderer, kind, data.train, "train")
    held_out = opened(recipe, renderer, kind, data.test, "test") if data.test else None
    test, counts = held_out.all(recipe.eval.problems) if held_out else ([], None)
    told = held_out.told(counts) if held_out and counts else None
    return Stream(train, Cursor(len(train), recipe.seed)), test, told


def opened(recipe: Recipe, renderer: Renderer, kind: Kind, source: Any, split: str) -> RowSet[Any]:
    """The rows of one place as things of one kind."""
    data = recipe.data
    columns = Columns(
        **data.columns.model_dump(), answer_pattern=data.answer_pattern, system=data.system, template=data.template, chat=data.chat
    )
    rows = open_rows(source, split_default=split, offline=recipe.offline, key=f"data.{split}")
    reader = READERS[kind](rows, columns)
    reader.check(stop=data.on_bad_row == "stop")
    limits = {"max_prompt_tokens": recipe.max_prompt_tokens, "on_long": data.on_long, "on_bad_row": data.on_bad_row}
    if kind != "prompts":
        limits["max_completion_tokens"] = recipe.max_completion_tokens
    return SETS[kind](reader, renderer, **limits)
