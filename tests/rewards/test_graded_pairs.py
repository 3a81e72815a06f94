"""Completions with their right score: kinds of faults that users of graders report, a set by somebody who had not seen it, and attacks."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding.resolve import import_reward
from rlkit.runtime.paths import find_bundled_folder

FOLDER = Path(__file__).parent


def read_pairs(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def score(pair: dict[str, Any]) -> float:
    columns = pair["answer"] if pair["reward"] == "countdown" else {"answer": pair["answer"]}
    prompt = {"prompt": pair["prompt"]} if "prompt" in pair else {}
    result: float = import_reward(pair["reward"])(completion=pair["completion"], **columns, **prompt)
    return result


@pytest.mark.parametrize("name", ["graded.jsonl", "independent.jsonl", "attacks.jsonl", "unseen.jsonl"])
def test_every_pair_has_its_score(name: str) -> None:
    assert [pair for pair in read_pairs(name) if score(pair) != pair["want"]] == []


SEPARATORS = r"\s*(?:,|;|\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b|或|和|、)\s*"


def change_digit(text: str, draw: random.Random) -> str:
    at = draw.choice([match.start() for match in re.finditer(r"\d", text)])
    return text[:at] + draw.choice([digit for digit in "123456789" if digit != text[at]]) + text[at + 1 :]


def swap_numbers(text: str, draw: random.Random) -> str | None:
    """The text with two different numbers in each other's place; None where there are no two."""
    numbers = [match.span() for match in re.finditer(r"\d+", text)]
    pairs = [(a, b) for a, b in itertools.combinations(numbers, 2) if text[slice(*a)] != text[slice(*b)]]
    if not pairs:
        return None
    (a, b), (c, d) = draw.choice(pairs)
    return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def test_no_reference_accepts_itself_with_a_digit_changed_or_two_numbers_swapped() -> None:
    """Only the elements of a list or a set may change their places. The references are those of the pairs, of all kinds."""
    pairs = read_pairs("graded.jsonl") + read_pairs("independent.jsonl")
    references = {pair["answer"] for pair in pairs if pair["reward"] == "accuracy" and isinstance(pair["answer"], str)}
    numeric = sorted(text for text in references if re.search(r"\d", text) and "box" not in text and "<" not in text[:1])
    draw, tried, wrong = random.Random(0), 0, []
    for reference in numeric:
        for given in {change_digit(reference, draw), change_digit(reference, draw), swap_numbers(reference, draw)} - {None}:
            tried += 1
            elements = [sorted(re.split(SEPARATORS, re.sub(r"^\$?\\\{|\\\}\$?$|\$", "", text))) for text in (reference, str(given))]
            want = float(elements[0] == elements[1] and "dots" not in reference and reference[0] not in "([")
            if import_reward("accuracy")(completion=rf"\boxed{{{given}}}", answer=reference) != want:
                wrong.append((reference, given, want))
    assert tried > 500 and wrong == []


def test_the_table_of_the_readme_is_true() -> None:
    """Each cell of "What earns": what stands in code is an answer in a box, or has one."""
    table = (find_bundled_folder("rewards") / "README.md").read_text(encoding="utf-8").partition("## What earns")[2]
    rows = [re.split(r"\s\|\s?", line.strip().strip("|")) for line in table.partition("Powers (")[0].splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    wrong = []
    for references, *cells in rows:
        for want, cell in zip((1.0, 0.0), cells, strict=True):
            for reference, given in itertools.product(re.findall("`([^`]*)`", references), re.findall("`([^`]*)`", cell)):
                completion = given if "boxed" in given else rf"\boxed{{{given}}}"
                if import_reward("accuracy")(completion=completion, answer=reference) != want:
                    wrong.append((reference, given, want))
    assert wrong == []


@pytest.mark.parametrize(
    "given",
    [
        r"\sum_{k=0}^{2023}\binom{2023}{k}",
        r"\sum_{k=1}^{9999}\sqrt{k}",
        r"\sum_{a=1}^{99}\sum_{b=1}^{99}\sum_{c=1}^{99} a^{b^{c}}",
        "(x+y+z+w)^{99}",
        r"\prod_{n=1}^{10^{9}} n",
        r"\sin(10^{10^{9}})",
        "e^{e^{e^{e^{9}}}}",
        "1/3" + "^9" * 60,
        r"\sqrt{" * 60 + "2" + "}" * 60,
        "9" * 1900 + "^{1999}",
        "1e999999999",
        "5e-8000",
        r"\frac{\pi}{2}-\frac{1}{2023!}",
        r"\sqrt[63]{10^{19990}+1}",
        r"\sum_{k=1}^{2000}\sin\sqrt{k}",
        "5" + r" \text{a}" * 60 + " x",
        r"\sin " * 330 + "1",
        "1" + "/1" * 990,
        "1" + "!" * 1900,
        "[" * 900 + "1" + "]" * 900,
        ", ".join(f"x/{k}" for k in range(2, 200)),
    ],
)
def test_the_cost_of_an_answer_is_bounded_before_it_is_computed(given: str) -> None:
    started = time.process_time()
    assert score({"reward": "accuracy", "completion": rf"\boxed{{{given}}}", "answer": "126"}) == 0.0
    assert score({"reward": "accuracy", "completion": rf"\boxed{{{given}}}", "answer": r"\sqrt{3}+x"}) == 0.0
    assert score({"reward": "accuracy", "completion": rf"\boxed{{{given}}}", "answer": given}) == 1.0
    assert time.process_time() - started < 3.0


PIECES = [
    *"`\n-[({}$*_?.,#=:\\|½",
    "**",
    "1+",
    "1 ",
    "1,",
    "a ",
    "A. ",
    "(a) ",
    r"\\",
    "9^",
    "answer is ",
    "答案",
    "is ",
    "because ",
    "and ",
]
PIECES += [r"\boxed{", r"\frac{1}{", r"\(", r"\[", r"\text{", r"\left(", r"\begin{", "<answer>", "</think>"]


@pytest.mark.parametrize("start", ["", "<answer>", "\\boxed{"])
def test_degenerate_text_takes_time_linear_in_its_length(start: str) -> None:
    """40,000 characters of one piece: no quadratic step fits into the second that each may take, the quicker of two attempts."""
    slow, paid = [], []
    for piece in PIECES:
        for reward, answer in (("accuracy", "2"), ("countdown", {"nums": [1], "target": 1}))[: 1 if start else 2]:
            completion = start + piece * (40_000 // len(piece)) + "}" * (start == "\\boxed{")
            for _ in range(2):
                started = time.process_time()
                paid += [(reward, piece)] * (score({"reward": reward, "completion": completion, "answer": answer}) != 0.0)
                if (took := time.process_time() - started) <= 1.0:
                    break
            slow += [(reward, piece)] * (took > 1.0)
    assert slow == [] and paid == []


@pytest.mark.parametrize(
    ("prompt", "completion", "answer", "right"),
    [
        ("What is 27 + 18?", "27 + 18", "45", False),
        ("What is 27 + 18?", "27 + 18 = ?", "45", False),
        ("Expand $(x+1)^2$.", r"\boxed{(x+1)^2}", "x^2+2x+1", False),
        ("Expand $(x+1)^2$.", r"\boxed{x^2 + 2x + 1}", "x^2+2x+1", True),
        ("Write 3/4 as a decimal.", r"\boxed{3/4}", "0.75", False),
        ("Which is larger, 2/3 or 3/4?", r"\boxed{\frac{3}{4}}", "3/4", True),
        ("A bag has 45 apples and 3 pears. How many apples?", r"\boxed{45}", "45", True),
        ([{"role": "user", "content": "Simplify x+x+x."}], r"\boxed{x+x+x}", "3x", False),
        ([{"role": "user", "content": "Simplify x+x+x."}], r"\boxed{3x}", "3x", True),
    ],
)
def test_an_expression_of_the_prompt_is_no_answer(prompt: Any, completion: str, answer: str, right: bool) -> None:
    assert import_reward("accuracy")(completion=completion, answer=answer, prompt=prompt) == float(right)
