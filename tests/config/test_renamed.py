"""A recipe with a key or a value of before is refused, and told what it is called now."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from rlkit import run
from rlkit.config.compose import compose_config
from rlkit.config.recipe import list_keys, read_recipe
from rlkit.config.renamed import RENAMED_KEYS, RENAMED_KEYS_OF_ALGORITHM, RENAMED_VALUES, find_keys
from rlkit.config.sections import EngineSection
from rlkit.errors import UserError

OLD = {
    "engine.checkpointing=1": "engine.checkpointing is called engine.gradient_checkpointing now",
    "+engine.checkpointing=1": "engine.checkpointing is called engine.gradient_checkpointing now",
    "++engine.checkpointing=1": "engine.checkpointing is called engine.gradient_checkpointing now",
    "~engine.checkpointing": "engine.checkpointing is called engine.gradient_checkpointing now",
    "~engine.checkpointing=0": "engine.checkpointing is called engine.gradient_checkpointing now",
    "engine={checkpointing: 1}": "engine.checkpointing is called engine.gradient_checkpointing now",
    "report.floors=false": "report.floors is called report.roofline now",
    "rewarding.deadline=3": "rewarding.deadline is called rewarding.timeout now",
    "rewarding.load_deadline=3": "rewarding.load_deadline is called rewarding.load_timeout now",
    "rewards.accuracy.deadline=3": "rewards.accuracy.deadline is called rewards.accuracy.timeout now",
    "rewards={mine: {path: length, deadline: 3}}": "rewards.mine.deadline is called rewards.mine.timeout now",
    "engine.memory=slept": "engine.memory=slept is called engine.memory=sleep now",
    "++engine.memory=swapped": "engine.memory=swapped is called engine.memory=sleep_and_offload now",
}
OLD_OF_DPO = {
    "algorithm.flipped=0.1": "algorithm.flipped is called algorithm.label_smoothing now",
    "algorithm={loss: simpo, gap: 1.0}": "algorithm.gap is called algorithm.simpo_gamma now",
    "~algorithm.gap": "algorithm.gap is called algorithm.simpo_gamma now",
}
CASES = [("grpo_math", *old) for old in OLD.items()] + [("dpo_math", *old) for old in OLD_OF_DPO.items()]


@pytest.mark.parametrize(("recipe", "override", "words"), CASES)
def test_an_override_of_an_old_key_is_refused(recipe: str, override: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--cfg", "job"], ["--multirun"]):
        assert run.main([f"recipe={recipe}", "dry_run=true", override, *flags]) == 2
        assert capsys.readouterr().err == f"rlkit: {words}\n"


def test_a_recipe_of_ones_own_with_old_keys_is_refused_with_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\nengine: {checkpointing: 2, memory: slept}\nrewards:\n  mine: {path: length, deadline: 2.0}\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    assert run.main([f"--config-dir={tmp_path}", "recipe=mine", "dry_run=true"]) == 2
    assert sorted(capsys.readouterr().err.removeprefix("rlkit: ").splitlines()) == [
        "engine.checkpointing is called engine.gradient_checkpointing now",
        "engine.memory=slept is called engine.memory=sleep now",
        "rewards.mine.deadline is called rewards.mine.timeout now",
    ]


def test_the_recipe_of_an_older_run_is_refused_as_well() -> None:
    config = compose_config(["recipe=grpo_math"], None)
    with pytest.raises(UserError, match=r"^report.floors is called report.roofline now$"):
        read_recipe({**config, "report": {**config["report"], "floors": True}})


def test_a_key_of_a_class_of_ones_own_may_have_an_old_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from rlkit.algorithms import Objective\nclass Mine(Objective):\n    gap: float\n")
    words = ["recipe=grpo_math", "algorithm=custom", f"algorithm.path={file}:Mine", "algorithm.gap=0.5"]
    assert read_recipe(compose_config(words, None)).algorithm.gap == 0.5


def test_every_new_name_is_a_key_and_no_old_one_is() -> None:
    for old, new in {**RENAMED_KEYS, **{k: v for keys in RENAMED_KEYS_OF_ALGORITHM.values() for k, v in keys.items()}}.items():
        for key, known in ((old, False), (new, True)):
            *sections, name = key.split(".")
            assert (name in list_keys(sections)) is known, key
    modes = get_args(EngineSection.model_fields["memory"].annotation)
    assert set(RENAMED_VALUES["engine.memory"].values()) < set(modes)


def test_a_table_of_other_keys_can_be_read_the_same_way() -> None:
    table = {"num_generations": "samples_per_prompt", "sources.*.file": "data.train.*.path"}
    config = {"num_generations": 8, "sources": {"a": {"file": "a.jsonl"}, "b": {"path": "b.jsonl"}}}
    assert list(find_keys(config, table)) == [
        ("num_generations", "samples_per_prompt", 8),
        ("sources.a.file", "data.train.a.path", "a.jsonl"),
    ]
