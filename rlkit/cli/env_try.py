"""`rlkit env try`: an episode with an environment whose turns are typed, or come from a pipe. Loads no model.

Left out: several episodes at a time, and several environments by a column; a run has them.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from rlkit.cli.output import LEAVE, print_aside, print_text, read_lines
from rlkit.environments.base import Answer, EpisodeEnd, EpisodeFailure, Observation, Opening
from rlkit.environments.client import SessionClient
from rlkit.environments.job import ONLY
from rlkit.environments.spec import EnvironmentSettings
from rlkit.errors import EXIT_DONE, EXIT_FAILED, UserError
from rlkit.rewarding.spec import RewardSettings
from rlkit.run import handle_errors
from rlkit.runtime.library_settings import configure_libraries
from rlkit.runtime.paths import find_bundled_folder

USAGE = "rlkit env try PATH [seed=0] [row=JSON] [timeout=S] [args.NAME=VALUE ...]"
OWN_KEYS = ("seed", "row", "timeout", "max_observation")
KEY: Any = (0, 0, 0, 0)  # of the only session; rlkit.types, which has the class, imports torch
Schemas = Mapping[str, Mapping[str, Any]]


def run_env_try(arguments: list[str]) -> int:
    """Plays one episode. Returns the exit code, as rlkit.run; 1 where the environment failed."""
    configure_libraries(offline=False)
    return handle_errors(lambda: open_environment(arguments), arguments)


def open_environment(arguments: list[str]) -> int:
    """As run_env_try. Raises UserError."""
    path, own, args = split_arguments(arguments)
    row, seed = parse_value("row", own.pop("row", "{}"), dict), parse_value("seed", own.pop("seed", "0"), int)
    try:
        settings = EnvironmentSettings(path=path, args=args, workers=1, **{name: parse_value(name, text) for name, text in own.items()})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}={first['input']} is not valid: it {first['msg'].removeprefix('Input ')}") from error
    defaults = yaml.safe_load((find_bundled_folder("recipes") / "config.yaml").read_text(encoding="utf-8"))
    with SessionClient(settings, RewardSettings(**defaults["rewarding"])) as client:
        kind = client.wait_until_ready()[ONLY]
        print_aside(f"{path}: {kind.shape}{', with a reward' if kind.has_reward else ''}; Ctrl-D or {LEAVE[0]} ends the episode")
        client.open(KEY, row, seed)
        try:
            return play_episode(client)
        except BrokenPipeError:  # the reader is gone (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush of Python fails
            return EXIT_DONE


def split_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The path, the values of the command's own keys, and the args of the class. Raises UserError."""
    paths = [word for word in arguments if "=" not in word]
    if len(paths) != 1:
        raise UserError(f"name one environment: {USAGE}")
    own, args = dict[str, str](), dict[str, Any]()
    for name, _, text in (word.partition("=") for word in arguments if "=" in word):
        if name in OWN_KEYS:
            own[name] = text
        elif name.startswith("args.") and name != "args.":
            args[name.removeprefix("args.")] = parse_word(text)
        else:
            raise UserError(f"{name}= is unknown; valid are {', '.join(f'{key}=' for key in OWN_KEYS)} and args.NAME=")
    return paths[0], own, args


def play_episode(client: SessionClient) -> int:
    """Shows what the environment answers, and hands on what is typed until it is over. Returns the exit code."""
    answer = receive(client)
    lines, tools = read_lines(), read_schemas(answer)
    while not isinstance(answer, (EpisodeEnd, EpisodeFailure)):
        print_answer(answer)
        line = None if isinstance(answer, Observation) and answer.done else next_turn(lines)
        if line is None:
            client.finish(KEY)
        else:
            client.act(KEY, parse_turn(line, tools))
        answer = receive(client)
    if isinstance(answer, EpisodeFailure):
        print_text(f"failed, no reward: {answer.why}")
        return EXIT_FAILED
    reward = "no reward" if answer.reward is None else f"reward {answer.reward:g}"
    print_text(", ".join([reward, *(f"{name} {value:g}" for name, value in answer.metrics.items())]))
    return EXIT_DONE


def receive(client: SessionClient) -> Answer:
    while not (found := client.collect(1.0)):
        pass
    return found[0][1]


def next_turn(lines: Any) -> str | None:
    """The next line that is not empty; None where there is none, or it leaves."""
    line = next((line for line in map(str.strip, lines) if line), None)
    return None if line in LEAVE else line


def print_answer(answer: Opening | Observation) -> None:
    for message in answer.messages:
        print_text(f"{message['role']}{' ' + message['name'] if message.get('name') else ''}: {message['content']}")
    if isinstance(answer, Opening):
        for schema in answer.tools or ():
            print_aside(f"tool {describe_tool(schema)}")
    elif answer.reward:
        print_text(f"({answer.reward:+g})")


def describe_tool(schema: Mapping[str, Any]) -> str:
    function = schema["function"]
    parameters = [f"{name}: {value.get('type', 'any')}" for name, value in function.get("parameters", {}).get("properties", {}).items()]
    return f"{function['name']}({', '.join(parameters)})  {' '.join(str(function.get('description', '')).split())}"


def read_schemas(answer: Answer) -> Schemas:
    return {schema["function"]["name"]: schema for schema in (answer.tools or ())} if isinstance(answer, Opening) else {}


def parse_turn(line: str, tools: Schemas) -> dict[str, Any]:
    """The message of the assistant: a call where the line begins with the name of a tool or is a call as JSON, else a text."""
    name, _, rest = line.partition(" ")
    calls = []
    if name in tools:
        calls = [{"function": {"name": name, "arguments": parse_call(rest.strip(), tools[name])}}]
    elif tools and line[0] in "[{":
        try:
            found = json.loads(line)
            calls = found if isinstance(found, list) else [found]
        except ValueError:
            calls = []
    return {"role": "assistant", "content": "" if calls else line, **({"tool_calls": calls} if calls else {})}


def parse_call(text: str, schema: Mapping[str, Any]) -> Any:
    """Arguments as JSON, as name=value, or the whole text for a tool of one parameter."""
    properties = list(schema["function"].get("parameters", {}).get("properties", {}))
    if text.startswith("{"):
        return text
    try:
        words = [word.partition("=") for word in shlex.split(text)]
    except ValueError:  # a quotation mark in a sentence
        words = []
    if words and all(equals and name in properties for name, equals, _ in words):
        return {name: parse_word(value) for name, _, value in words}
    if not text or not properties:
        return {}
    return {properties[0]: text if _is_text(schema, properties[0]) else parse_word(text)}


def _is_text(schema: Mapping[str, Any], name: str) -> bool:
    return bool(schema["function"]["parameters"]["properties"][name].get("type") == "string")


def parse_word(text: str) -> Any:
    """A value as JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_value(name: str, text: str, kind: type | None = None) -> Any:
    """The value of an own key as JSON. Raises UserError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if kind is not None and type(value) is not kind:
        raise UserError(f"{name}={text} is not valid: it must be {'a JSON object' if kind is dict else 'a whole number'}")
    return float(value) if name == "timeout" and type(value) is int else value
