"""Functions written for other toolkits run unchanged, and the same reward in each form gives the same numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlkit.errors import UserError
from rlkit.rewarding.calling import load_function, needs_answer
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.forms import CallLog
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
    def __init__(self, unit=1.0):
        self.unit = unit

    def __call__(self, completion, answer):
        return self.unit * (completion == answer)

instance = Callable()

class SwiftORM:
    def __init__(self, args=None, **kwargs):
        pass

    async def __call__(self, completions, answer, **kwargs):
        return [float(said == right) for said, right in zip(completions, answer)]

def trl_all(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, answer, **kwargs):
    assert trainer_state.global_step == 4 and trainer_state.max_steps == 9 and not kwargs.keys() & {"completion", "prompt_text"}
    assert completion_ids == [[int(said), 9] for said in completions]
    log_metric("size", len(completions))
    log_metric("size", 0)
    log_extra("first", [int(said) for said in completions])
    log_extra("text", completions)
    return [float(said == right) for said, right in zip(completions, answer)]

def trl_ids(completion_ids, answer, **kwargs):
    assert "trainer_state" in kwargs and "log_extra" in kwargs and "completions" in kwargs
    return [float(str(ids[0]) == right) for ids, right in zip(completion_ids, answer)]

def openrlhf(queries, prompts, labels, **kwargs):
    import numpy
    assert prompts == ["<user>p"] * len(queries)
    rewards = numpy.array([query[len(prompt):] == label for query, prompt, label in zip(queries, prompts, labels)], numpy.float32)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"twice": 2 * rewards, "all": len(queries), "text": "x"}}

def openrlhf_list(queries, prompts, labels):
    return [float(query.endswith(label)) for query, label in zip(queries, labels)]

def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    assert data_sources == ["sums"] * len(extra_infos) and all(info["level"] == 3 for info in extra_infos)
    return [{"score": float(said == right), "n": 2} for said, right in zip(solution_strs, ground_truths)]

def verl_both(data_sources=None, solution_strs=None, ground_truths=None, data_source=None, solution_str=None, ground_truth=None):
    assert (solution_strs is None) != (solution_str is None)
    return float(solution_str == ground_truth)

def older_easyr1(predict: str, ground_truth: str, format_weight: float = 0.0) -> dict:
    return {"overall": float(predict == ground_truth), "format": 0.0}

def oldest_easyr1(predict_str, ground_truth):
    return float(predict_str == ground_truth)

def older_easyr1_batch(predicts, ground_truths, format_weight=0.0):
    return [{"overall": float(said == right)} for said, right in zip(predicts, ground_truths)]
"""
NAMES = [
    *("ours", "as_dict", "compute_score", "trl", "easyr1", "easyr1_one", "slow", "slow_trl", "instance", "Callable", "SwiftORM"),
    *("trl_all", "trl_ids", "openrlhf", "openrlhf_list", "verl_batch", "verl_both"),
    *("older_easyr1", "oldest_easyr1", "older_easyr1_batch"),
]
ROW = {"prompt": "p", "prompt_text": "<user>p", "data_source": "sums", "level": 3, "completion_length": 7}


def test_same_reward_in_every_form_gives_the_same_verdicts(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards(FORMS)
    items = [ROW | {"completion": str(n % 3), "completion_ids": [n % 3, 9], "answer": str(n % 2)} for n in range(24)]
    expected = [float(n % 3 == n % 2) for n in range(24)]
    rewards = {name: RewardSpec(path=f"{file}:{name}") for name in NAMES}
    with RewardClient(rewards, make_settings()) as client:
        client.steps, client.finished_steps = 9, 4
        for number, item in enumerate(items):
            client.submit(number, item, number // 4, 4)
        together = list(client.collect(range(24)).values())
    for name in NAMES:
        assert [result.components[name].value for result in together] == expected, name
    assert [result.reward for result in together] == [len(NAMES) * value for value in expected]
    assert together[0].metrics == {
        "as_dict/length": 1.0,
        "trl_all/size": 2.0,
        "trl_all/first": 0.0,
        "openrlhf/twice": 2.0,
        "openrlhf/all": 4.0,
        "verl_batch/n": 2.0,
        "older_easyr1/format": 0.0,
    }


def test_what_only_the_trainer_knows_is_no_column(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
def ours(completion, **columns): return len(columns.keys() & {"completion_ids", "trainer_state", "prompt_text"})
def asked(completion, completion_ids, trainer_state, **columns): return len(completion_ids) + trainer_state.max_steps
def easyr1(reward_inputs): return [len(reward_inputs[0].keys() & {"completion_ids", "trainer_state", "prompt_text"})]
def verl(solution_str, ground_truth, extra_info): return len(extra_info.keys() & {"completion_ids", "trainer_state", "prompt_text"})
""")
    rewards = {name: RewardSpec(path=f"{file}:{name}") for name in ("ours", "asked", "easyr1", "verl")}
    item = {"prompt": "p", "completion": "c", "answer": "a", "completion_ids": [1, 2, 3], "prompt_text": "<p>"}
    [result] = score_all(rewards, [item], group_size=1)
    assert [result.components[name].value for name in rewards] == [0.0, 3.0, 0.0, 0.0], result.components


def test_args_of_a_class_go_to_its_init_and_the_others_to_its_calls(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
class Scorer:
    def __init__(self, path, scale=1.0): self.value = len(path) * scale
    def __call__(self, completion, *, bonus=0.0): return self.value + bonus
""")
    [result] = score_all({"a": RewardSpec(path=f"{file}:Scorer", args={"path": "abc", "bonus": 10})}, [{"prompt": "p", "completion": ""}])
    assert result.reward == 13.0, result.components


REFUSED = {  # a function, the args of its recipe, and why it is refused
    "def f(completion, answer, /): return 1.0": (
        {},
        "takes completion, answer by position only, and arguments are passed by name; remove",
    ),
    "f = len": ({}, "takes obj by position only"),
    "def f(completion, threshold=1.0): return 1.0": (
        {"treshold": 2},
        "does not take 'treshold' of rewards.f.args (it takes:",
    ),
    "class f:\n    pass": ({}, "is a class without __call__; add one, or name a function"),
    "class f:\n    def __init__(self, url): pass\n    def __call__(self, completion): pass": ({}, "needs 'url' of its __init__ in args"),
    "def f(text): return 1.0": ({}, "one form is needed: completion (one sample), completions (a group, TRL)"),
    "f = dict.fromkeys": ({}, "takes iterable, value by position only"),
    "f = min": ({}, "does not show its parameters; wrap it in a function of your own"),
}


@pytest.mark.parametrize("source", REFUSED)
def test_a_function_that_cannot_be_called_by_name_is_refused_at_load(write_rewards: Callable[[str], str], source: str) -> None:
    args, reason = REFUSED[source]
    file = write_rewards(source)
    with pytest.raises(UserError) as caught:
        load_function(WorkerReward("f", f"{file}:f", args=args))
    assert reason in str(caught.value)


def test_conversations_arrive_as_messages_and_args_by_name(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
def ours(prompt, completion, bonus): return len(prompt) + prompt[0]["content"].count("?") + bonus
def trl(prompts, completions): return [len(p) + len(c[0]["content"]) + (c[0]["role"] == "assistant") for p, c in zip(prompts, completions)]
""")
    item = {"prompt": [{"role": "user", "content": "why? how?"}], "completion": "so"}
    [result] = score_all({"a": RewardSpec(path=f"{file}:ours", args={"bonus": 10}), "b": RewardSpec(path=f"{file}:trl")}, [item])
    assert (result.components["a"].value, result.components["b"].value) == (13.0, 4.0)


# What a shipped reward takes from the row; all its other parameters are settings.
FROM_THE_ROW = {
    "prompt",
    "completion",
    "completion_length",
    "answer",
    "tests",
    "entry_point",
    "tolerance",
    "schema",
    "nums",
    "numbers",
    "target",
}


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
        ("f(queries, prompts, labels)", "labels", "prompts, queries"),
        ("f(solution_strs, ground_truths)", "ground_truths", "data_sources, extra_infos, solution_strs"),
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
class Asks:
    def __call__(self, completion, answer): ...
def labelled(queries, prompts, labels): ...
def graded(data_sources, solution_strs, ground_truths, extra_infos): ...
def predicted(predict, ground_truth): ...
@decorated
def wrapped(completion, answer): ...
instance = object()
""")
    names = ("ours", "slow", "verl", "trl", "easyr1", "Asks", "labelled", "graded", "predicted")
    asked = {name: needs_answer(f"{file}:{name}", {}) for name in names}
    assert set(asked.values()) == {True}, asked
    free = {name: needs_answer(f"{file}:{name}", {}) for name in ("free", "may", "may_verl", "columned", "wrapped", "instance", "nowhere")}
    assert set(free.values()) == {False}, free
    assert not needs_answer(f"{file}:ours", {"answer": "4"}) and not needs_answer("package.module:function", {})
    shipped = {name for name in list_shipped_rewards() if needs_answer(name, {})}
    assert shipped == {"accuracy", "exact_match", "fuzzy_match", "math_verify_score", "multiple_choice", "strict_accuracy"}
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
