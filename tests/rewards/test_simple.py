"""The small shipped rewards: scores worked out by hand."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from rlkit.rewarding.resolve import import_reward, list_shipped_rewards
from rlkit.runtime.paths import find_bundled_folder


def score(name: str, completion: str, **columns: Any) -> float:
    result = import_reward(name)(completion=completion, **columns)
    assert isinstance(result, float)
    return result


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer> b </answer>\n", 1.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("so: <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> or c", 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0),
    ],
)
def test_format_tags(completion: str, expected: float) -> None:
    assert score("format_tags", completion) == expected


def test_format_tags_that_the_prompt_opened_and_of_other_names() -> None:
    assert score("format_tags", "a</think><answer>b</answer>", opened=True) == 1.0
    assert score("format_tags", "<plan>a</plan> <do>b</do> <check>c</check>", tags=["plan", "do", "check"]) == 1.0


@pytest.mark.parametrize(("tokens", "expected"), [(0, 1.0), (25, 0.75), (100, 0.0), (150, 0.0)])
def test_length(tokens: int, expected: float) -> None:
    assert score("length", "", completion_length=tokens, longest=100) == expected


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (80, 0.0), (85, -0.25), (95, -0.75), (100, -1.0), (130, -1.0)])
def test_overlong_is_equation_13_of_dapo(tokens: int, expected: float) -> None:
    assert score("overlong", "", completion_length=tokens, longest=100, buffer=20) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("a b c d", 0.0),
        ("a b", 0.0),
        ("a a a a", -0.5),  # two trigrams, one of them new
        ("a b c a b c", -0.25),  # abc bca cab abc
        ("A b c a B c", -0.25),
    ],
)
def test_repetition(completion: str, expected: float) -> None:
    assert score("repetition", completion) == expected


@pytest.mark.parametrize("bad", [("length", {"longest": 0}), ("overlong", {"longest": 10, "buffer": 11}), ("repetition", {"n": 0})])
def test_settings_out_of_bounds_are_reported(bad: tuple[str, dict[str, int]]) -> None:
    with pytest.raises(ValueError, match="args"):
        score(bad[0], "a", completion_length=1, **bad[1])


def test_exact_match() -> None:
    assert score("exact_match", " New  York\n", answer="New York") == 1.0
    assert score("exact_match", "new york", answer="New York") == 0.0
    assert score("exact_match", "new york", answer=["Paris", "New York"], ignore_case=True) == 1.0
    assert score("exact_match", "<answer>a</answer><answer>b</answer>", answer="b", pattern="<answer>(.*?)</answer>") == 1.0
    assert score("exact_match", "b", answer="b", pattern="<answer>(.*?)</answer>") == 0.0


def test_fuzzy_match() -> None:
    assert score("fuzzy_match", "ABCD", answer="abcd") == 1.0
    assert score("fuzzy_match", "abcd", answer="bcde") == 0.75  # bcd in common: 2 * 3 / 8
    assert score("fuzzy_match", "abcd", answer=["xyz", "bcde"], threshold=0.75) == 0.75
    assert score("fuzzy_match", "abcd", answer="bcde", threshold=0.8) == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<reversed_text>dcba</reversed_text>", 1.0),
        ("Here:\n<reversed_text>\n dcba \n</reversed_text> or <reversed_text>x</reversed_text>", 1.0),
        ("<reversed_text>dcbx</reversed_text>", 0.75),  # dcb in common: 2 * 3 / 8
        ("<reversed_text>dc</reversed_text>", 2 / 3),
        ("dcba", 0.0),
        ("<reversed_text>dcba", 0.0),
    ],
)
def test_reverse_text(completion: str, expected: float) -> None:
    messages = [{"role": "system", "content": "Reverse it."}, {"role": "user", "content": "abcd"}]
    assert score("reverse_text", completion, prompt=messages) == score("reverse_text", completion, prompt="abcd") == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"so \boxed{B}", 1.0),
        (r"so \boxed{\text{(B)}}", 1.0),
        (r"\boxed{A} then \boxed{B}", 1.0),
        ("<answer>B</answer>", 1.0),
        ("<answer> (B) because", 1.0),
        ("The answer is B.", 1.0),
        ("Answer: **B**", 1.0),
        ("A is wrong, C is wrong.\nB", 1.0),
        ("The answer is A.", 0.0),
        ("The answer is a mystery", 0.0),
        ("The answer is B. Option A is wrong because it is too small.", 1.0),
        ("Option A is wrong.\n\n(B)", 1.0),
        ("I choose option B", 1.0),
        ("Answer: I think it is B", 1.0),
        ("Answer: I think so", 0.0),
        (r"The answer is: $B$", 1.0),
        (r"\boxed{\text{Option B}}", 1.0),
        ("The answer is B because A is too small", 1.0),
        ("Because of that", 0.0),
    ],
)
def test_multiple_choice(completion: str, expected: float) -> None:
    assert score("multiple_choice", completion, answer="B") == expected


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("(a) 3, (b) 5", 0.0),
        ("A) 3 B) 5", 0.0),
        ("a:b=2:3", 0.0),
        ("A = 5", 0.0),
        ("A or B", 0.0),
        ("A, B, C, D", 0.0),
        ("A. B. C. D.", 0.0),
        ("(A) 3", 1.0),
        ("a: 3", 1.0),
        ("A, not B", 1.0),
        ("A, for B and C are odd", 1.0),
    ],
)
def test_what_is_marked_is_one_choice_as_a_whole(marked: str, expected: float) -> None:
    assert score("multiple_choice", rf"\boxed{{{marked}}}", answer="A") == expected
    assert score("multiple_choice", f"<answer>{marked}</answer>", answer="A") == expected
    if marked in ("(A) 3", "a: 3"):  # a letter with its option is a reference too
        assert score("multiple_choice", "A", answer=marked) == 1.0
    else:
        with pytest.raises(ValueError, match="must be one letter"):
            score("multiple_choice", "A", answer=marked)


def test_multiple_choice_counts_from_0_and_refuses_what_is_no_letter() -> None:
    assert score("multiple_choice", "The answer is C", answer=2) == 1.0
    assert score("multiple_choice", "The answer is C", answer=["A", 2]) == 1.0
    assert score("multiple_choice", "The answer is A because B is too large", answer="A") == 1.0
    assert score("multiple_choice", r"\boxed{a good one}", answer="A") == 0.0
    assert score("multiple_choice", "Answer: I'd say so", answer="I") == 0.0
    with pytest.raises(ValueError, match="must be one letter"):
        score("multiple_choice", "B", answer="both")


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"n": 3}', 1.0),
        ('Here it is:\n```json\n{"n": 3}\n```\nDone.', 1.0),
        ('```bash\ncurl x\n```\nsays\n```JSON\r\n{"n": 3}\r\n```\nnot\n```python\nx\n```', 1.0),
        ('```text\n3\n```\n```\n{"n": 3}\n```', 1.0),
        ('{"n": "3"}', 0.0),
        ('{"n": 3, "m": 1}', 0.0),
        ('{"n": 3', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(completion: str, expected: float) -> None:
    assert score("json_schema", completion, schema=SCHEMA) == expected
    assert score("json_schema", completion, schema=json.dumps(SCHEMA)) == expected


def test_json_schema_refuses_a_schema_that_is_none_and_fetches_nothing() -> None:
    with pytest.raises(ValueError, match="not a valid JSON Schema"):
        score("json_schema", "{}", schema={"type": "thing"})
    with pytest.raises(Exception, match="Unresolvable"):
        score("json_schema", "{}", schema={"$ref": "http://localhost:9/schema.json"})


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>(25 - 5) * 4 + 3</answer>", 1.0),
        (r"\boxed{(25 - 5) \times 4 + 3}", 1.0),
        ("I try.\n(25 - 5) * 4 + 3 = 83", 1.0),
        ("<answer>25 * 4 - 5 * 3</answer>", 0.0),  # 85
        ("<answer>83</answer>", 0.0),
        ("<answer>25 * 4 - 5 * 3 - 1 - 1</answer>", 0.0),  # 83, with numbers that were not given
        ("<answer>25 * 3 + 4 + 4</answer>", 0.0),
        ("<answer>25 / 0</answer>", 0.0),
        ("<answer>25 ** 4 ** 5 ** 3</answer>", 0.0),
        ("<answer>__import__('os').getpid()</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(completion: str, expected: float) -> None:
    assert score("countdown", completion, nums=[3, 4, 5, 25], target=83) == expected


def test_countdown_reckons_exactly_and_with_either_column() -> None:
    assert score("countdown", "<answer>8 / (3 - 8 / 3)</answer>", numbers=[3, 3, 8, 8], answer="24") == 1.0
    with pytest.raises(ValueError, match="needs the columns nums"):
        score("countdown", "1", nums=[1])
    started = time.perf_counter()
    assert score("countdown", "<answer>" + "(" * 50_000, nums=[1], target=1) == 0.0
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"so \boxed{45}", "45", 1.0),
        ("It is 45.", 45, 1.0),
        ("12 and then 1,234 apples", "1234", 1.0),
        (r"\boxed{27+18=45}", "45.0", 1.0),
        (r"\boxed{27+18}", "45", 0.0),
        (r"45, no: \boxed{46}", "45", 0.0),
        ("What is 12 + 33?", "45", 0.0),  # the problem again
        ("9-45", "45", 1.0),
        ("it is -45", "45", 0.0),
        (r"\boxed{\dfrac{1}{2}}", "0.5", 1.0),
        (r"\boxed{1/3}", "0.333333", 0.0),  # nothing is rounded
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{x + 1}", "1 + x", 0.0),  # nothing is reordered
        ("The answer is B.", "b", 1.0),
        ("", ["1", "2"], 0.0),
        ("2", ["1", "2"], 1.0),
        ("9" * 5000, "9", 0.0),
    ],
)
def test_strict_accuracy(completion: str, answer: Any, expected: float) -> None:
    assert score("strict_accuracy", completion, answer=answer) == expected


def test_every_shipped_reward_has_its_row_in_the_readme() -> None:
    readme = (find_bundled_folder("rewards") / "README.md").read_text(encoding="utf-8").partition("## What earns")[0]
    named = {*re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)}
    assert named == {*list_shipped_rewards(), "environment"}  # which comes from the environment of a run, and is no file
