"""The shipped tools and environments: what they answer, what they earn, and what the policy may do to them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.environments.shipped.calculator import calculator
from rlkit.environments.shipped.guess_number import GuessNumber
from rlkit.environments.shipped.python import Python
from rlkit.environments.shipped.search import Search
from rlkit.environments.shipped.wordle import Wordle, mark_letters
from rlkit.errors import UserError
from tests.rewarding.conftest import explain_no_sandbox


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2 + 3 * 4", "14"),
        ("-(7 // 2) ** 2 % 5", "1"),
        ("1 / 4", "0.25"),
        ("sqrt(2 ** 10) + abs(-1)", "33.0"),
        ("max(1, round(pi, 2))", "3.14"),
    ],
)
def test_the_calculator(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "9 ** 9 ** 9",
        "2 ** 5000",
        "(10 ** 600) * (10 ** 700)",
        "__import__('os').system('id')",
        "(1).real",
        "[1][0]",
        "True",
        "1 if 1 else 2",
        "'a' * 9",
        "1 / 0",
        "sqrt(-1)",
        "1 +",
        "0x" + "f" * 2000,
        "-" * 900 + "1" * 200,
    ],
)
def test_the_calculator_refuses_what_is_no_arithmetic_or_too_large(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError, ZeroDivisionError)):
        calculator(expression)


@pytest.mark.parametrize(
    ("guess", "word", "marks"),
    [
        ("crane", "brain", "-GGY-"),
        ("brain", "brain", "GGGGG"),
        ("geese", "eagle", "YY--G"),
        ("allow", "label", "YYY--"),
        ("llama", "small", "YYGY-"),
    ],
)
def test_wordle_marks_letters_as_often_as_the_word_has_them(guess: str, word: str, marks: str) -> None:
    assert "".join(mark_letters(guess, word)) == marks


def test_wordle_is_won_or_lost() -> None:
    game = Wordle(guesses=2)
    assert "2 guesses" in game.reset(word="brain")
    with pytest.raises(ValueError, match="5 letters"):
        game.guess("toolong")
    assert game.guess("crane").splitlines() == ["C R A N E", "- G G Y -", "1 guesses left."] and not game.done
    assert game.guess("Brain ").endswith("Right.") and (game.done, game.get_reward(), game.get_metrics()) == (True, 1.0, {"guesses": 2})
    game.reset(word="brain")
    game.guess("crane")
    assert game.guess("trail").endswith("The word was brain.") and (game.done, game.get_reward()) == (True, 0.0)
    assert len(game.words) > 500 and [game.reset(seed=3) and game.word for _ in range(2)] == [game.word] * 2


def test_wordle_with_words_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Crane\nBrain\n")
    (tmp_path / "bad.txt").write_text("crane\ntoolong\n")
    assert Wordle(words=str(tmp_path / "words.txt")).words == ["crane", "brain"]
    with pytest.raises(UserError, match=r"needs words of 5 letters.*toolong"):
        Wordle(words=str(tmp_path / "bad.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        Wordle(words=str(tmp_path / "none.txt"))


def test_halving_finds_every_number_in_six_guesses() -> None:
    earned = []
    for secret in range(1, 64):  # with 64 too, the last guess might be open
        game, low, high = GuessNumber(), 1, 63
        game.reset(seed=0, options={"secret": secret})
        over = False
        while not over:
            middle = (low + high) // 2
            answer, reward, right, late, _ = game.step(f"Between {low} and {high}, so {middle}.")
            low, high = (middle + 1, high) if answer == "higher" else (low, middle - 1)
            over = right or late
        earned.append(reward)
    assert earned == [1.0] * 63
    assert game.reset(seed=5, options={})[0].startswith("I think of a whole number from 1 to 64. You have 6 guesses")
    assert game.step("no idea")[:2] == ("write a number from 1 to 64", 0.0)


def test_search_returns_the_best_documents(tmp_path: Path) -> None:
    rows = [
        {"title": "Paris", "text": "Paris is the capital of France."},
        {"contents": "Berlin is the capital of Germany. " * 20},
        {"text": "A fox."},
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    tool = Search(str(tmp_path / "docs.jsonl"), characters=40)
    assert tool.search("Where is France?") == "[Paris]\nParis is the capital of France."
    assert tool.search("Germany") == "[2]\nBerlin is the capital of Germany. Berlin..."
    assert tool.search("fox in Paris").count("\n\n") == 1  # two documents
    assert tool.search("zebra") == "nothing found" and tool.search("the ?") == "nothing found: the query has no words to search for"
    for text, message in (('{"a": 1}\n', "line 1 has none of the columns text"), ("{", "cannot be read"), ("\n", "holds no documents")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            Search(str(tmp_path / "bad.jsonl"))


@pytest.fixture
def python() -> Iterator[Any]:
    if reason := explain_no_sandbox():
        pytest.skip(reason)
    tool = Python(seconds=1.0, memory_mib=256)
    yield tool
    tool.close()


def test_python_keeps_its_names_and_whatever_the_code_does_is_an_answer(python: Any) -> None:
    assert [python.python(code) for code in ("x = 6", "x * 7", "print('a')\nimport os\n_ = os.system('echo b')")] == [
        "(nothing was printed)",
        "42",
        "a\nb",
    ]
    assert python.python("1 / 0").endswith("ZeroDivisionError: division by zero") and python.python("raise SystemExit(3)").endswith(
        "SystemExit: 3"
    )
    assert "No such file" in python.python("open('/etc/passwd')") and python.python("bytearray(10 ** 10)").endswith("MemoryError")
    assert python.python("print('y' * 10 ** 6)").endswith("[cut: 1000001 bytes were printed]")
    assert python.python("x") == "6"  # nothing of this ended it
    assert python.python("import os\nos.fork() and None\nprint(x)").startswith("6")


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("while True: pass", "Error: it took more than 1 s; Python starts anew"),
        ("import os\nos._exit(0)", "Error: it ended; Python starts anew"),
        ("import os\nos.close(3)\nos.close(4)\nos.close(5)", "Error: it"),
        (
            "import os, sys\nfor d in range(3, 9):\n  try: os.write(d, b'99999999999 x')\n  except OSError: pass",
            "Error: it wrote no answer",
        ),
    ],
)
def test_python_starts_anew_where_the_code_ended_it(python: Any, code: str, answer: str) -> None:
    python.python("x = 1")
    assert python.python(code).startswith(answer)
    assert "NameError" in python.python("x")
