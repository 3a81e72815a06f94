"""Held-out problems in training rows: those that were planted are found, and no others."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rlkit.assembly.datasets import open_sources
from rlkit.assembly.overlap import describe_overlap, measure_overlaps
from rlkit.config.recipe import Recipe
from rlkit.data.overlap import WORDS_IN_A_ROW, Overlap, find_overlaps
from rlkit.errors import UserError
from tests.algorithms.tiny import together
from tests.config.test_recipe import composed

INSTRUCTION = "Solve the next problem step by step and write the final answer alone in the last line of your text please: "
draw = random.Random(1)


def write_text(words: int) -> str:
    return " ".join(f"w{draw.randrange(5000)}" for _ in range(words))


PROBLEMS = [INSTRUCTION + write_text(40) for _ in range(200)]
SHORT = ["What is 12 + 33?", "What is 12 - 33?"]


def test_planted_rows_are_found_and_no_others() -> None:
    """All rows share an instruction of 20 words with all problems, and most share single words after it."""
    rows = [INSTRUCTION + write_text(60) for _ in range(2000)]
    rows[7] = f"{write_text(5)} {' '.join(PROBLEMS[3].split()[30 : 30 + WORDS_IN_A_ROW])} {write_text(9)}"
    rows[8] = f"{write_text(5)} {' '.join(PROBLEMS[4].split()[30 : 29 + WORDS_IN_A_ROW])} {write_text(9)}"  # a word less
    rows[1500] = PROBLEMS[10].upper().replace(" ", ", ")  # other case and punctuation
    rows[1600] = "  what is 12\n + 33?"
    found = find_overlaps({"all": [*PROBLEMS, *SHORT], "some": PROBLEMS[:5], "none": [write_text(30)]}, rows)
    assert found == {"all": Overlap(202, 3, (7, 1500, 1600)), "some": Overlap(5, 1, (7,)), "none": Overlap(1, 0, ())}


def test_an_n_gram_does_not_reach_over_two_rows_or_unknown_words() -> None:
    words = [f"a{n}" for n in range(WORDS_IN_A_ROW)]
    text = " ".join(words)
    halves = [" ".join(words[:7]), " ".join(words[7:])]
    assert find_overlaps({"one": [text]}, [*halves, " ".join([*words[:7], "unknown", *words[7:]])])["one"].shared == 0
    assert find_overlaps({"one": [text + " more"]}, [text])["one"].rows == (0,)


def test_a_run_shows_the_overlap_and_refuses_more_than_it_allows(tmp_path: Path) -> None:
    """Only what evaluates is looked at, and texts are compared without the recipe's template."""
    for name, texts in {"train": [*PROBLEMS[50:60], SHORT[0]], "test": PROBLEMS[:5], "hard": [SHORT[0], *PROBLEMS[20:39]]}.items():
        rows = [json.dumps({"question": text, "answer": "1"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    words = [f"data.train={tmp_path}/train.jsonl", f"data.test={tmp_path}/test.jsonl", f"eval.sets.hard.path={tmp_path}/hard.jsonl"]
    recipe = composed("recipe=grpo", "model.path=builtin", "max_prompt_tokens=64", "data.template='{{ question }} Answer.'", *words)
    sources = open_sources(recipe, "prompts")

    def describe(ranks: Any, told: Recipe) -> list[tuple[str, str]]:
        ranks.main = ranks.rank == 0
        return describe_overlap(told, ranks, sources, lambda phase: None)

    lines = together(2, lambda ranks: describe(ranks, recipe))
    said = "data.test: none of 5 problems stands in the training rows; eval.sets.hard: 1 of 20 problems (5.0%) stand in 1 training row"
    assert lines == [[("overlap", said)]] * 2
    assert measure_overlaps(recipe, sources)["eval.sets.hard"].share == 0.05
    strict = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_overlap": 0.04})})
    with pytest.raises(
        UserError, match=r"eval.sets.hard: 1 of 20 problems .* more than data.max_overlap=0.04 allows: .*train.jsonl row 11;"
    ):
        together(1, lambda ranks: describe(ranks, strict))
