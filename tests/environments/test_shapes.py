"""Environments in all shapes run unchanged: what opens, what answers, what it earns; and what is refused, in which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rlkit.environments.base import EpisodeEnd, Observation, Opening
from rlkit.environments.client import SessionClient
from rlkit.environments.job import WorkerEnvironment
from rlkit.environments.loading import GYMNASIUM, TRL_CLASS, load_environment
from rlkit.errors import UserError
from rlkit.types import Key

from .conftest import OWN, call, make_client, play, say, texts, turn

SEVERAL = {
    "trl": f"{OWN}:HigherLower",
    "functions": f"{OWN}:add,{OWN}:wait",
    "gym": f"{OWN}:Countdown",
    "openenv": f"{OWN}:Echo",
    "skyrl": "skyrl_gym.envs.gsm8k.multi_turn_env:GSM8kMultiTurnEnv",
}
CHAT = [{"role": "system", "content": "Play."}, {"role": "user", "content": "Guess my number."}]


@pytest.fixture(scope="module")
def client() -> Iterator[SessionClient]:
    with make_client(SEVERAL, args={"trl": {"top": 10}}, workers=1, timeout=20.0) as client:
        yield client


def play_one(client: SessionClient, row: dict[str, Any], *turns: dict[str, Any], seed: int = 0) -> list[Any]:
    return play(client, {Key(0, 0, 0): (row, turns)}, seed)[Key(0, 0, 0)]


def test_a_class_of_tools_as_in_trl(client: SessionClient) -> None:
    row = {"environment": "trl", "prompt": CHAT, "secret": 6}
    opening, *answers, end = play_one(
        client, row, call("guess", number=9), turn(("hint", None), ("guess", {"number": 11})), call("guess", number=6), say("no")
    )
    assert opening.messages == (CHAT[0], {"role": "user", "content": "Guess my number. It is between 1 and 10."})
    assert [tool["function"]["name"] for tool in opening.tools] == ["guess", "hint"]
    assert opening.tools[0]["function"]["parameters"]["properties"] == {
        "number": {"type": "integer", "description": "The number that you guess."}
    }
    assert texts(answers) == ["lower", "even", "Error: ValueError: 11 is more than 10", "right"]
    assert answers[1].messages[1] == {"role": "tool", "name": "guess", "content": texts(answers)[2], "tool_call_id": "c1"}
    assert [answer.done for answer in answers] == [False, False, True]  # the environment set `done`
    assert end == EpisodeEnd(1 / 3, {"calls": 4.0, "failed_calls": 1.0, "tries": 3.0})


def test_functions_sync_and_async(client: SessionClient) -> None:
    row = {"environment": "functions", "prompt": "Add."}
    opening, *answers, end = play_one(client, row, turn(("add", {"a": 2}), ("wait", '{"seconds": 0.01}')), say("3"))
    assert opening.messages == ({"role": "user", "content": "Add."},) and len(opening.tools) == 2
    assert texts(answers) == ["3.0", '{"waited": 0.01}'] and answers[-1] == Observation((), done=True)
    assert end == EpisodeEnd(None, {"calls": 2.0, "failed_calls": 0.0})


def test_reset_and_step_of_gymnasium(client: SessionClient) -> None:
    row = {"environment": "gym", "prompt": "Count.", "start": 2}
    opening, *answers, end = play_one(client, row, say("one"), say("two"), say("never"), seed=7)
    assert opening == Opening(({"role": "user", "content": "Count.\n\nseed 7, 2 left"},), None)
    assert [(answer.messages[0]["content"], answer.done, answer.reward) for answer in answers] == [
        ("one: 1 left", False, 0.25),
        ("two: 0 left", True, 0.25),
    ]
    assert end == EpisodeEnd(0.5, {})


def test_an_environment_of_skyrl_gym_unchanged(client: SessionClient) -> None:
    row = {"environment": "skyrl", "prompt": CHAT, "reward_spec": {"ground_truth": "42"}, "extra_info": {"max_turns": 4}}
    opening, *answers, end = play_one(client, row, say("#### 41"), say("hm"), say("#### 42"), say("never"))
    assert opening == Opening(tuple(CHAT), None)
    assert [answer.reward for answer in answers] == [pytest.approx(0.2 / 4), 0.0, 1.0]
    assert [answer.done for answer in answers] == [False, False, True]
    assert answers[0].messages[0]["role"] == "user" and "tentative numeric answer" in answers[0].messages[0]["content"]
    assert end == EpisodeEnd(pytest.approx(1.05), {"steps": 3.0})


def test_a_client_of_openenv_by_its_methods(client: SessionClient) -> None:
    turns = [say("hi"), say('{"message": "ab", "times": 2}'), say('{"massage": 1}'), say("bye"), say("never")]
    opening, *answers, end = play_one(client, {"environment": "openenv", "prompt": "Talk."}, *turns, seed=4)
    assert opening == Opening(({"role": "user", "content": "Talk.\n\nseed 4"},), None)
    assert texts(answers)[:2] == ["hi", "abab"] and texts(answers)[2].startswith("Error: TypeError") and texts(answers)[3] == "bye"
    assert [(answer.done, answer.reward) for answer in answers] == [(False, 2.0), (False, 4.0), (False, None), (True, 3.0)]
    assert end == EpisodeEnd(9.0, {})


def test_the_column_tools_chooses_or_replaces(client: SessionClient) -> None:
    own = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    rows = [{"environment": "functions", "tools": ["add"]}, {"environment": "functions", "tools": [own]}]
    scripts = {Key(n, 0, 0): (row, [turn(("add", {"a": 1}), ("wait", {"seconds": 0}))]) for n, row in enumerate(rows)}
    for (opening, *answers), tools in zip(play(client, scripts).values(), (["add"], [own]), strict=True):
        assert isinstance(opening, Opening) and opening.tools is not None
        assert [tool["function"]["name"] for tool in opening.tools] == ["add"] and (tools == ["add"] or list(opening.tools) == tools)
        assert texts(answers) == ["2.0", "Error: there is no tool 'wait'; the tools are add"]


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        (f"{OWN}:NoTools", {}, "NoTools has no public method beside reset"),
        (f"{OWN}:Undocumented", {}, "the tool look has no schema .* needs a docstring"),
        (f"{OWN}:HigherLower", {"tip": 3}, r"takes no 'tip' in args \(it takes: top\)"),
        (f"{OWN}:HigherLower,{OWN}:add", {}, "is a class, which stands alone"),
        (f"{OWN}:add,{OWN}:add", {}, "two tools have the same name"),
        (f"{OWN}:add,{OWN}:wait", {"a": 1}, "functions take no args"),
        (f"{OWN}:HigherLowr", {}, r"no function 'HigherLowr' \(did you mean HigherLower\?\)"),
    ],
)
def test_what_has_no_shape_is_refused(path: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(WorkerEnvironment("", path, args))


def test_the_shape_of_what_a_factory_makes_and_of_a_class_whose_tool_is_called_step() -> None:
    made = load_environment(WorkerEnvironment("", f"{OWN}:make_countdown", {"start": 2}))
    stepping = load_environment(WorkerEnvironment("", f"{OWN}:Stepping"))
    assert (made.kind.shape, made.kind.tools, made.kind.has_reward) == (GYMNASIUM, None, True)
    assert (stepping.kind.shape, list(stepping.kind.tools or ()), stepping.kind.sessions) == (TRL_CLASS, ["step"], 8)


@pytest.mark.parametrize(
    ("path", "message"), [("wordel", "unknown environment 'wordel' .did you mean wordle"), ("none.py:X", "no file .*none.py")]
)
def test_a_path_that_names_nothing_is_refused_before_anything_starts(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_client(path)


@pytest.mark.parametrize(
    ("path", "row", "message"),
    [
        (f"{OWN}:Pendulum", {}, "reset returned list as observation; a language model reads text"),
        (f"{OWN}:Countdown", {"tools": ["look"]}, "the column `tools` names look; the environment has no tools"),
        ({"a": f"{OWN}:Countdown", "b": f"{OWN}:Pendulum"}, {"environment": "c"}, "chooses one of a, b; here it is 'c'"),
    ],
)
def test_a_row_or_an_observation_that_does_not_fit_stops_the_run(path: str | dict[str, str], row: dict[str, Any], message: str) -> None:
    with make_client(path, workers=1) as client, pytest.raises(UserError, match=message):
        play_one(client, row)
