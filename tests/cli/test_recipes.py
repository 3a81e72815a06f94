"""rlkit recipes: names, descriptions and groups, from the files alone."""

from __future__ import annotations

import json
from pathlib import Path

from rlkit.config.catalog import find_recipes
from rlkit.config.compose import compose_recipe, list_options
from tests.cli.conftest import call


def test_every_recipe_is_listed_with_what_it_does_and_what_it_is_made_of() -> None:
    found = {entry.name: entry for entry in find_recipes("", None)}
    assert list(found) == list_options("recipe", None)
    assert all(entry.description and entry.description[0].isupper() for entry in found.values())
    assert vars(found["grpo_qwen2_5_7b"]) == {
        "name": "grpo_qwen2_5_7b",
        "description": "Four GPUs with 80 GB: GRPO for Qwen2.5-7B-Instruct on GSM8K, all weights trained.",
        "algorithm": "grpo",
        "data": "gsm8k",
        "model": "qwen2_5_7b",
    }


def test_the_groups_are_those_that_hydra_composes() -> None:
    for name in ("dpo_smollm2", "kto_math", "grpo_smollm2_reading"):
        [entry] = [entry for entry in find_recipes(name, None) if entry.name == name]
        assert compose_recipe([f"recipe={name}"], None).config["algorithm"]["name"] == entry.algorithm


def test_a_word_and_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\ndefaults: [grpo_gsm8k]\nsteps: 3\ndata: {train: my.jsonl}\n"
    )
    code, out, _ = call("recipes", "mine", "--config-dir", str(tmp_path))
    assert code == 0 and out == "mine  (algorithm grpo, data my.jsonl, model Qwen/Qwen2.5-1.5B-Instruct)\n    Mine.\n"
    code, out, _ = call("recipes", "mine", "--json", "--config-dir", str(tmp_path))
    assert [entry["name"] for entry in json.loads(out)["recipes"]] == ["mine"]
    code, out, err = call("recipes", "grpo_mth", "--json")
    assert (code, out) == (2, "") and "did you mean grpo_math" in err
    (tmp_path / "recipe" / "mine.yaml").write_text("defaults: [mine]\n")
    code, _, err = call("recipes", "mine", "--config-dir", str(tmp_path))
    assert code == 2 and "based on itself" in err
