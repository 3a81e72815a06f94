"""What rlkit.train makes of its arguments: words of a command line, rewards by file or pickle, rows in a file."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import rlkit
from rlkit.api import child, functions, rows, words
from rlkit.assembly import run_folder
from rlkit.config.compose import compose_config, compose_recipe
from rlkit.config.recipe import read_recipe
from rlkit.data.sources import open_rows
from rlkit.errors import UserError
from rlkit.rewarding import calling, python_functions, replay
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind


def top_level(prompt: str, completion: str, answer: str) -> float:
    return float(answer in completion)


class Short:
    def __call__(self, completion: str) -> float:
        return 1.0 / (1 + len(completion))


# -- words -------------------------------------------------------------------------------------------------------------------------


def test_values_reach_the_recipe_as_they_are() -> None:
    given = {"optim.lr": 1e-4, "optim": {"betas": (0.5, np.float64(0.75))}, "steps": np.int64(3), "model.path": Path("a b/c=d~'e'")}
    given |= {"rewards.accuracy.args": {"longest": 3, "names": ["x, y", "z"]}, "data.test": None, "debug": True, "algorithm": "rloo"}
    recipe = read_recipe(compose_config(["recipe=grpo_math", *words.build_words(given)], None))
    assert (recipe.optim.lr, recipe.optim.betas, recipe.steps, recipe.model.path) == (1e-4, (0.5, 0.75), 3, "a b/c=d~'e'")
    assert recipe.rewards is not None and recipe.rewards["accuracy"].args == {"longest": 3, "names": ["x, y", "z"]}
    assert (recipe.data.test, recipe.debug, recipe.algorithm.name) == (None, True, "rloo")


def test_load_recipe_is_the_recipe_of_a_run() -> None:
    assert rlkit.load_recipe("grpo_math", {"steps": 2}, steps=5).steps == 5  # keywords win
    with pytest.raises(UserError, match=r"unknown key optim\.rl; valid: betas, eps, lr"):
        rlkit.load_recipe("grpo_math", {"optim.rl": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": object()}, "steps: a recipe holds text, numbers, True, False, None, lists and mappings, not object"),
        ({"optim": {"l r": 1}}, "'optim.l r' cannot be a key of a recipe"),
        ({1: 2}, "'1' cannot be a key of a recipe"),
    ],
)
def test_what_is_no_override_is_refused(given: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        words.build_words(given)


# -- rewards -----------------------------------------------------------------------------------------------------------------------


def test_a_function_of_a_file_is_named_by_it_and_any_other_is_pickled() -> None:
    section, pickled = functions.collect_rewards([top_level, "accuracy", lambda completion: 1.0, Short(), functools.partial(top_level, "")])
    assert {name: keys["path"] for name, keys in section.items()} == {
        "top_level": f"{__name__}:top_level" if "." in __name__ else f"{Path(__file__)}:top_level",
        "accuracy": "accuracy",
        "reward": "python:reward",
        "short": "python:short",
        "top_level_2": "python:top_level_2",
    }
    assert list(pickled) == ["python:reward", "python:short", "python:top_level_2"]
    assert pickled["python:reward"].parameters.required == {"completion"}


def test_a_mapping_names_rewards_and_sets_their_keys() -> None:
    section, pickled = functions.collect_rewards({"a": {"path": top_level, "weight": 0.5}, "b": Path("my.py:score")})
    assert section["a"]["weight"] == 0.5 and section["b"] == {"path": "my.py:score"} and pickled == {}


@pytest.mark.parametrize("given", [[], {}, [3], {"a b": top_level}, {"a": {"weight": 1}}])
def test_what_is_no_reward_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"^rewards"):
        functions.collect_rewards(given)


def test_a_variable_of_this_process_alone_is_refused() -> None:
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"rewards\.score cannot be sent to the reward workers: .*lock.*\n.*make it inside the function"):
        functions.collect_rewards({"score": lambda completion: float(lock.locked())})


def test_they_take_the_place_of_the_rewards_of_a_recipe() -> None:
    own = {name: words.build_words({"rewards": {name: {"path": "length"}}}) for name in ("accuracy", "mine")}
    replaced = child.replace_rewards(["recipe=dapo_math", "rewards.mine.weight=3"], own)
    rewards = compose_config(replaced, None)["rewards"]
    assert rewards == {"accuracy": {"path": "length"}, "mine": {"path": "length", "weight": 3}}


def test_a_pickled_function_runs_in_its_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_functions, "_registered", {})
    bonus = 2.0
    _, pickled = functions.collect_rewards({"mine": lambda answer, completion: bonus})
    with pytest.raises(UserError, match=r"'python:mine' came from Python, through rlkit\.train, and no file holds it"):
        calling.needs_answer("python:mine", {})
    python_functions.register_functions(pickled)
    assert calling.needs_answer("python:mine", {})
    reward = WorkerReward("mine", "python:mine", pickled=pickled["python:mine"].pickled)
    assert calling.load_function(reward).function("", "") == 2.0
    file = replay.write_replay(tmp_path, reward, [{"completion": ""}], 1, Outcome(OutcomeKind.ERROR))
    assert "pickled" not in file.read_text()


# -- rows --------------------------------------------------------------------------------------------------------------------------

ROWS = [{"question": f"{n}?", "answer": str(n), "n": n} for n in range(3)]


@pytest.mark.parametrize("given", [ROWS, datasets.Dataset.from_list(ROWS), pd.DataFrame(ROWS), iter(ROWS)], ids=lambda g: type(g).__name__)
def test_rows_in_memory_are_rows_of_a_file(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
    keys = rows.collect_data({"train": given, "test": ROWS, "chat": True})
    assert keys["data.chat"] is True and keys["data.test"] == rows.collect_data(ROWS)["data.train"]  # the same rows, the same file
    assert list(open_rows(str(keys["data.train"]), split_default="train", offline=True)) == ROWS
    assert not list((tmp_path / "rows").glob(".*"))


def test_other_rows_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "attempt": 1}) + "\n")
    texts = [compose_recipe(["recipe=grpo", "model.path=m", *words.build_words(rows.collect_data(r))], None).text for r in (ROWS, ROWS[:2])]
    (run / "recipe.yaml").write_text(texts[0])
    assert run_folder.explain_occupied(run, texts[0], "auto") is None
    assert "holds a run of another recipe" in (run_folder.explain_occupied(run, texts[1], "auto") or "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "data.train is 3; it takes a list of dicts"),
        ([{"a": 1}, "text"], "data.train row 2 is no dict with names of columns: 'text'"),
        ([{"a": 1, "b": {1, 2}}], 'data.train row 1 column "b" holds what JSON has not: a set'),
        (pd.DataFrame({"a": [1, "x", {}]}), "data.train: DataFrame cannot be written as Parquet"),
    ],
    ids=str,
)
def test_what_is_no_row_is_refused(given: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message):
        rows.collect_data(given)


# -- the door ----------------------------------------------------------------------------------------------------------------------


def test_importing_rlkit_loads_nothing() -> None:
    code = (
        "import sys, rlkit; print([name for name in sys.modules if name.startswith('rlkit')]); rlkit.train; dir(rlkit)\n"
        "print([name for name in ('torch', 'hydra', 'pydantic', 'cloudpickle', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(rlkit.__file__).parents[1])
    assert done.stdout.splitlines() == ["['rlkit']", "[]"]
    with pytest.raises(AttributeError, match="module 'rlkit' has no attribute 'trian'; it has"):
        rlkit.trian  # noqa: B018
