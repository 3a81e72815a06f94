"""Functions written for other toolkits run unchanged, and the same reward in each form gives the same numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlkit.rewarding.calling import load_function, needs_answer
from rlkit.rewarding.forms import CallLog
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import OutcomeKind
from rlkit.rewarding.resolve import import_reward, list_shipped_rewards
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings

from .conftest import score_all

FORMS = """
import asyncio

def ours(prompt, completion, answer, **columns):
    return float(completion == answer)

def as_dict(completion, answer):
    return {"score": float(completion == answer), "length": len(completion), "note": "not a number"}

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "sums" and extra_info["level"] == 3
    return 1.0 if solution_str == ground_truth else 0.0

def trl(prompts, completions, answer, level, **kwargs):
    assert level == [3] * len(completions)
    return [1.0 if said == right else 0.0 for said, right in zip(completions, answer, strict=True)]

def easyr1(reward_inputs):
    assert all(one["response_length"] == 7 for one in reward_inputs)
    return [{"overall": float(one["response"] == one["ground_truth"])} for one in reward_inputs]

def easyr1_one(reward_input):
    return {"overall": float(reward_input["response"] == reward_input["ground_truth"])}

async def slow(completion, answer):
    await asyncio.sleep(0.01)
    return float(completion == answer)

async def slow_trl(completions, answer, **kwargs):
    await asyncio.sleep(0.01)
    return [float(said == right) for said, right in zip(completions, answer)]

class Callable:
    def __call__(self, completion, answer):
        return completion == answer

instance = Callable()
"""
NAMES = ["ours", "as_dict", "compute_score", "trl", "easyr1", "easyr1_one", "slow", "slow_trl", "instance"]
ROW = {"prompt": "p", "data_source": "sums", "level": 3, "completion_length": 7}


def test_same_reward_in_every_form_gives_the_same_verdicts(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards(FORMS)
    items = [ROW | {"completion": str(n % 3), "answer": str(n % 2)} for n in range(24)]
    expected = [float(n % 3 == n % 2) for n in range(24)]
    rewards = {name: RewardSpec(path=f"{file}:{name}") for name in NAMES}
    together = score_all(rewards, items, group_size=4)
    for name in NAMES:
        assert [result.components[name].value for result in together] == expected, name
    assert [result.reward for result in together] == [len(NAMES) * value for value in expected]
    assert together[0].metrics == {"as_dict/length": 1.0}


def test_conversations_arrive_as_messages_and_args_by_name(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
def ours(prompt, completion, bonus): return len(prompt) + prompt[0]["content"].count("?") + bonus
def trl(prompts, completions): return [len(p) + len(c[0]["content"]) + (c[0]["role"] == "assistant") for p, c in zip(prompts, completions)]
""")
    item = {"prompt": [{"role": "user", "content": "why? how?"}], "completion": "so"}
    [result] = score_all({"a": RewardSpec(path=f"{file}:ours", args={"bonus": 10}), "b": RewardSpec(path=f"{file}:trl")}, [item])
    assert (result.components["a"].value, result.components["b"].value) == (13.0, 4.0)


# What a shipped reward takes from the row; all its other parameters are settings.
FROM_THE_ROW = {"prompt", "completion", "completion_length", "answer", "tests", "entry_point", "schema", "nums", "numbers", "target"}


@pytest.mark.parametrize("name", list_shipped_rewards())
def test_no_column_changes_a_setting_of_a_shipped_reward(name: str) -> None:
    parameters = inspect.signature(import_reward(name)).parameters
    settings = set(parameters) - FROM_THE_ROW - {"columns"}
    args = {setting: "mine" for setting in settings if parameters[setting].default is inspect.Parameter.empty}
    reward = replace(load_function(WorkerReward("r", name, args=args)), function=lambda **given: given)
    row = dict.fromkeys({*parameters, "level"} - {"columns"}, "row")
    assert reward.call([row], CallLog(1)) == dict.fromkeys(set(row) - settings, "row") | args


SETTINGS = """
def ours(completion, answer, difficulty, level=None, *, strict=None, threshold=0.5, **columns):
    return difficulty + level + threshold + 100 * (strict is not None) + 1000 * len(columns.keys() & {"strict", "threshold"})

def verl(solution_str, ground_truth, difficulty, level=None, threshold=0.5, extra_info=()):
    return difficulty + level + threshold + 1000 * (extra_info["threshold"] != 9)

async def trl(prompts, completions, difficulty, level=None, threshold=0.5, **columns):
    return [d + l + threshold + 1000 * ("threshold" in columns) for d, l in zip(difficulty, level, strict=True)]

def easyr1(reward_inputs, threshold=0.5):
    return [{"overall": one["difficulty"] + one["level"] + threshold + 1000 * (one["threshold"] != 9)} for one in reward_inputs]
"""


@pytest.mark.parametrize("form", ["ours", "verl", "trl", "easyr1"])
def test_a_column_fills_no_setting_of_a_function_in_any_form(write_rewards: Callable[[str], str], form: str) -> None:
    """A default other than None, or a place after the *, makes a setting; None is what a column is where the row lacks it."""
    file = write_rewards(SETTINGS)
    row = {"prompt": "p", "completion": "c", "answer": "a", "difficulty": 10, "level": 3, "strict": True, "threshold": 9}
    rewards = {"default": RewardSpec(path=f"{file}:{form}"), "args": RewardSpec(path=f"{file}:{form}", args={"threshold": 0.25})}
    [result] = score_all(rewards, [row], group_size=1)
    assert [result.components[name].value for name in ("default", "args")] == [13.5, 13.25], result.components


def test_columns_that_a_setting_hides_are_named_for_each_reward(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards(SETTINGS)
    rewards = {name: RewardSpec(path=f"{file}:{name}") for name in ("ours", "verl", "easyr1")}
    with RewardClient(rewards, make_settings()) as client:
        client.wait_until_ready()
        assert client.describe_ignored_columns({"prompt", "level", "difficulty", "extra_info"}) == []
        end = "parameters of these names are settings, which only rewards.{}.args sets (see rewards/README.md)"
        assert client.describe_ignored_columns({"level", "threshold", "strict"}) == [
            f"rewards.ours ({file}:ours) does not get the data columns strict, threshold: {end.format('ours')}",
            f"rewards.verl ({file}:verl) does not get the data columns threshold: {end.format('verl')}",
        ]


def test_none_means_not_applicable_and_leaves_the_others_alone(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def a(completion): return None if completion == 'x' else 1.0\ndef b(completions): return [None, 2.0]\n")
    items = [{"prompt": "p", "completion": "x"}, {"prompt": "p", "completion": "y"}]
    results = score_all({"a": RewardSpec(path=f"{file}:a"), "b": RewardSpec(path=f"{file}:b")}, items, group_size=2)
    assert [result.reward for result in results] == [None, 3.0]
    assert [result.components["a"].kind for result in results] == [OutcomeKind.NOT_APPLICABLE, OutcomeKind.SCORE]


@pytest.mark.parametrize(("expression", "value"), [("True", 1.0), ("__import__('numpy').float32(0.25)", 0.25), ("3", 3.0)])
def test_what_counts_as_a_number(write_rewards: Callable[[str], str], expression: str, value: float) -> None:
    file = write_rewards(f"def f(completion): return {expression}\n")
    assert score_all({"f": RewardSpec(path=f"{file}:f")}, [{"prompt": "p", "completion": ""}])[0].reward == value


def test_missing_column_is_reported_with_the_columns_there_are(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def f(completion, solution): return 1.0\n")
    [result] = score_all({"f": RewardSpec(path=f"{file}:f")}, [{"prompt": "p", "completion": "", "answer": "1"}])
    assert result.components["f"].detail == (
        f"rewards.f ({file}:f) needs 'solution', which the data row does not have (it has: answer, completion, prompt); "
        "add a column of that name to the data, or set rewards.f.args"
    )


@pytest.mark.parametrize(
    ("function", "name", "has"),
    [
        ("f(completion, answer)", "answer", "completion, prompt"),
        ("f(solution_str, ground_truth)", "ground_truth", "data_source, extra_info, prompt, solution_str"),
        ("f(completions, answer)", "answer", "completions, prompts"),
    ],
)
def test_a_missing_answer_is_missing_in_every_form(write_rewards: Callable[[str], str], function: str, name: str, has: str) -> None:
    file = write_rewards(f"def {function}: return 1.0\n")
    [result] = score_all({"f": RewardSpec(path=f"{file}:f")}, [{"prompt": "p", "completion": ""}], group_size=1)
    assert result.components["f"].detail == (
        f"rewards.f ({file}:f) needs '{name}', which the data row does not have (it has: {has}); add a column of that name to the data, "
        "set the column of answers with data.columns.answer, or set rewards.f.args"
    )


def test_answers_of_every_kind_arrive_as_they_are(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
def ours(completion, answer): return float(completion in answer)
def verl(data_source, solution_str, ground_truth): return float(sum(ground_truth.values()))
def easyr1(reward_input): return {"overall": reward_input["ground_truth"] + 1}
""")
    for name, answer, score in (("ours", ["1/2", "0.5"], 1.0), ("verl", {"target": 98, "least": 2}, 100.0), ("easyr1", 7, 8.0)):
        [result] = score_all({name: RewardSpec(path=f"{file}:{name}")}, [{"prompt": "p", "completion": "0.5", "answer": answer}])
        assert result.reward == score, result.components[name].detail


def test_whether_a_reward_asks_for_an_answer_is_read_without_importing_it(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
raise SystemExit("imported")
def ours(prompt, completion, answer, **columns): ...
async def slow(completion, *, answer): ...
def verl(data_source, solution_str, ground_truth, extra_info=None): ...
def trl(prompts, completions, answer, **columns): ...
def easyr1(reward_inputs): ...
def free(completion, **columns): ...
def may(completion, answer=None): ...
def may_verl(solution_str, ground_truth=None): ...
def columned(completion, ground_truth): ...
@decorated
def wrapped(completion, answer): ...
instance = object()
""")
    asked = {name: needs_answer(f"{file}:{name}", {}) for name in ("ours", "slow", "verl", "trl", "easyr1")}
    assert set(asked.values()) == {True}, asked
    free = {name: needs_answer(f"{file}:{name}", {}) for name in ("free", "may", "may_verl", "columned", "wrapped", "instance", "nowhere")}
    assert set(free.values()) == {False}, free
    assert not needs_answer(f"{file}:ours", {"answer": "4"}) and not needs_answer("package.module:function", {})
    shipped = {name for name in list_shipped_rewards() if needs_answer(name, {})}
    assert shipped == {"accuracy", "exact_match", "fuzzy_match", "math_verify_score", "multiple_choice"}
    assert not needs_answer(f"{write_rewards('def broken(')}:broken", {})


def test_async_samples_are_under_way_together_each_with_its_own_timeout(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import asyncio, time
async def f(completion):
    if completion == "block": time.sleep(60)
    await asyncio.sleep(60 if completion == "late" else 0.2)
    if completion == "fail": raise TimeoutError("the server said so")
    return float(len(completion))
""")
    said = ["x" * (n % 4) for n in range(60)] + ["late", "fail", "block"]
    items: list[dict[str, Any]] = [{"prompt": "p", "completion": completion} for completion in said]
    results = score_all({"f": RewardSpec(path=f"{file}:f", timeout=1.0)}, items, max_failure_rate=1.0)
    assert [result.reward for result in results] == [float(n % 4) for n in range(60)] + [None] * 3
    kinds = [result.components["f"].kind for result in results[60:]]
    assert kinds == [OutcomeKind.TIMEOUT, OutcomeKind.ERROR, OutcomeKind.TIMEOUT]
