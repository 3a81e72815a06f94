"""Recipes and data files with mistakes in them: exit code 0 or 2, a short message without a traceback, and nothing written on 2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ended, run
from tests.mutations import Case, list_keys, mutate_data, mutate_recipe

FEW, ALL = 50, 500
MESSAGE_LINES, MESSAGE_CHARACTERS = 10, 3000
SMALL = ["steps=1", "data.epochs=null", "prompts_per_step=4", "eval.every=0", "checkpoint.every=0", "report.roofline=false"]
ONLINE = ["samples_per_prompt=2", "engine.rollout=hf"]
OFFLINE = ("recipe=sft_math", "recipe=dpo_math", "recipe=kto_math", "recipe=reward_model")


def run_cases(kind: str, count: int, model: Path, cache: Path) -> list[dict[str, Any]]:
    """What became of the first `count` cases, each in a fork of one process."""
    done = run(
        kind, "0", str(count), str(model), program="mutated.py", timeout=1800, TOKENIZERS_PARALLELISM="false", HF_DATASETS_CACHE=str(cache)
    )
    results = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    assert done.code == 0 and [result["seed"] for result in results] == list(range(count)), done.err[-2000:]
    return results


def run_step(seed: int, case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """What became of one step of a case through the door."""
    folder.mkdir(parents=True, exist_ok=True)
    case.write(folder)
    before = set(folder.rglob("*"))
    online = [] if any(word in OFFLINE for word in case.words) else ONLINE
    short = ["max_completion_tokens=16"] if case.files.keys() & {"conf/recipe/mine.yaml"} else []  # the default is 1024
    small = [*SMALL, f"model.path={model}", *online, *short]
    try:
        done = run(*case.words, *small, cwd=folder, timeout=120, HF_DATASETS_CACHE=str(folder.parent / "cache"))
    except subprocess.TimeoutExpired:
        done = Ended(-1, "", "it hangs")
    written = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    return {"seed": seed, "words": [*case.words, *small], "code": done.code, "err": done.err, "written": written[:9]}


def find_faults(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def is_wrong(result: dict[str, Any]) -> bool:
        code, err = result["code"], result["err"]
        told = code != 2 or ("rlkit: " in err and len(err.splitlines()) <= MESSAGE_LINES and len(err) <= MESSAGE_CHARACTERS)
        return code not in (0, 2) or not told or "Traceback" in err or (code == 2 and result["written"] != [])

    return [result for result in results if is_wrong(result)]


def list_valid_recipes(results: list[dict[str, Any]]) -> list[tuple[int, Case]]:
    cases = [(result["seed"], mutate_recipe(result["seed"], list_keys())) for result in results if result["code"] == 0]
    return [(seed, case) for seed, case in cases if not any(word.startswith(("--cfg", "-h", "-c")) for word in case.words)]


@pytest.mark.slow
def test_a_tenth_of_the_mutated_recipes(tiny_model: Path, tmp_path: Path) -> None:
    """Dry runs; one that is valid makes a step."""
    results = run_cases("recipes", FEW, tiny_model, tmp_path)
    seed, case = next((seed, case) for seed, case in list_valid_recipes(results) if any(word in OFFLINE for word in case.words))
    assert find_faults([*results, run_step(seed, case, tiny_model, tmp_path)]) == []


@pytest.mark.slow
def test_a_tenth_of_the_mutated_data_files(tiny_model: Path, tmp_path: Path) -> None:
    results = run_cases("rows", FEW, tiny_model, tmp_path)
    assert find_faults(results) == []
    assert {result["code"] for result in results} == {0, 2}


@pytest.mark.nightly(part="faults")
@pytest.mark.timeout(3600)
def test_all_mutated_recipes_and_one_step_of_those_that_are_valid(tiny_model: Path, tmp_path: Path) -> None:
    results = run_cases("recipes", ALL, tiny_model, tmp_path)
    valid = list_valid_recipes(results)
    steps = [run_step(seed, case, tiny_model, tmp_path / str(seed)) for seed, case in valid]
    assert find_faults([*results, *steps]) == []
    assert sum(step["code"] == 0 for step in steps) > ALL // 50


@pytest.mark.nightly(part="faults")
@pytest.mark.timeout(3600)
def test_all_mutated_data_files_through_the_door(tiny_model: Path, tmp_path: Path) -> None:
    results = [run_step(seed, mutate_data(seed), tiny_model, tmp_path / str(seed)) for seed in range(ALL)]
    assert find_faults(results) == []
    assert sum(result["code"] == 0 for result in results) > ALL // 20
