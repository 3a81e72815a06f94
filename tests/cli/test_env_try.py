"""`rlkit env try`: what a typed line becomes, and what is refused. Its commands run in tests/environments/test_page.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlkit.cli.env_try import parse_turn, split_arguments
from tests.cli.conftest import call


def tool(**types: str) -> dict[str, Any]:
    return {"function": {"parameters": {"properties": {name: {"type": kind} for name, kind in types.items()}}}}


TOOLS = {"guess": tool(word="string"), "add": tool(a="integer", b="number"), "look": tool()}


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        ("guess crane", [("guess", {"word": "crane"})]),
        ("guess 12 = twelve", [("guess", {"word": "12 = twelve"})]),
        ("guess it's", [("guess", {"word": "it's"})]),
        ("guess word=12", [("guess", {"word": 12})]),
        ('add a=1 b="2.5"', [("add", {"a": 1, "b": 2.5})]),
        ("add 3", [("add", {"a": 3})]),
        ('add {"a": 1}', [("add", '{"a": 1}')]),
        ("look", [("look", {})]),
    ],
)
def test_a_line_that_calls_a_tool(line: str, calls: list[tuple[str, Any]]) -> None:
    found = parse_turn(line, TOOLS)["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == calls


def test_calls_as_json_and_texts() -> None:
    both = '[{"name": "look"}, {"name": "guess", "arguments": {"word": "a"}}]'
    assert [call["name"] for call in parse_turn(both, TOOLS)["tool_calls"]] == ["look", "guess"]
    for line in ("I give up", "[not JSON", "guessing"):
        assert parse_turn(line, TOOLS) == {"role": "assistant", "content": line}
    assert parse_turn('{"a": 1}', {}) == {"role": "assistant", "content": '{"a": 1}'}  # an environment that reads text


def test_its_words() -> None:
    words = ["wordle", "seed=3", "args.guesses=4", "args.words=my=words.txt"]
    assert split_arguments(words) == ("wordle", {"seed": "3"}, {"guesses": 4, "words": "my=words.txt"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one environment: rlkit env try PATH"),
        (["wordle", "sed=3"], "sed= is unknown; valid are seed="),
        (["wordle", "seed=x"], "seed=x is not valid: it must be a whole number"),
        (["wordle", "row=[1]"], "row=[1] is not valid: it must be a JSON object"),
        (["wordle", "timeout=-1"], "timeout=-1.0 is not valid: it should be greater than 0"),
        (["wordel"], "unknown environment 'wordel' (did you mean wordle?)"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    code, out, err = call("env", "try", *words)
    assert (code, out) == (2, "") and message in err


def test_an_environment_that_fails_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n    def reset(self):\n        return ''\n    def step(self, text):\n        raise KeyError(text)\n"
    )
    from typer.testing import CliRunner

    from rlkit.cli import main

    answer = CliRunner().invoke(main.app, ["env", "try", f"{tmp_path / 'broken.py'}:Broken"], input="a\n")
    assert answer.exit_code == 1 and "failed, no reward" in answer.stdout and "KeyError: 'a'" in answer.stdout
