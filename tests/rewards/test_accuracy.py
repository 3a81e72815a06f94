r"""Maths grading: every form of an answer, every reference of GSM8K, and of plain numbers what math-verify finds."""

from __future__ import annotations

import json
import os
import random
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import math_verify
import numpy
import pytest

from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.resolve import import_reward
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings

ROOT = Path(__file__).parents[2]
accuracy = import_reward("accuracy")


@pytest.mark.parametrize(
    ("given", "reference", "right"),
    [
        # plain numbers, separators of thousands, currency, percent
        ("72", "72", True),
        ("-3", "-3", True),
        ("-3", "3", False),
        ("3.0", "3", True),
        ("3.10", "3.1", True),
        ("3.11", "3.1", False),
        ("12.", "12", True),
        ("1,000", "1000", True),
        ("1000", "1,000", True),
        ("1{,}000", "1000", True),
        (r"1\,000\,000", "1,000,000", True),
        ("1 000", "1,000", True),
        ("1,00", "100", False),
        ("1,000", "1", False),
        ("$18", "18", True),
        (r"\$1,234.50", "1234.5", True),
        ("€18", "$18", False),
        ("€18", "18", True),
        (r"18\%", "18", True),
        ("18%", "18", True),
        # fractions, roots, powers
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac12", "1/2", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
        (r"3\frac{1}{2}", "3.5", True),
        ("0.333333", "1/3", True),
        ("0.33", "1/3", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("10^3", "1000", True),
        (r"1.5\times10^3", "1500", True),
        (r"\pi", "3.14", False),
        # sets, tuples, intervals, matrices, expressions, equations
        (r"\{2, 1\}", r"\{1,2\}", True),
        ("5, 7", r"\{5,7\}", True),
        (r"\{1,2\}", r"\{1,3\}", False),
        ("(1,2)", "(1, 2)", True),
        ("(2,1)", "(1,2)", False),
        (r"(-\infty, 3]", r"(-\infty,3]", True),
        ("[1,2)", "(1,2)", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x=5", "5", True),
        ("x^2", "x^3", False),
        # units and words
        (r"12\text{ cm}", "12", True),
        (r"12 \mathrm{cm}^2", "12", True),
        (r"50^\circ", "50", True),
        ("5 dollars", "5", True),
        ("72 clips.", "72", True),
        (r"\text{18 apples}", "18", True),
        ("5 million", "5", False),
        ("5x", "5", False),
        (r"\text{Tuesday}", "Tuesday", True),
        (r"\text{Tuesday}", "Monday", False),
        # a comma parts the numbers of a list, and the thousands of a number
        ("(100,200)", "(100, 200)", True),
        ("[100,200]", "[100, 200]", True),
        (r"\{100,200\}", r"\{200, 100\}", True),
        ("(2,100]", "(2, 100]", True),
        ("(1{,}000, 2)", "(1000,2)", True),
        ("(100,200)", "100200", False),
        ("f(x)=1,000", "f(x)=1000", True),
        # words are no products of symbols
        (r"\text{BCA}", r"\text{ABC}", False),
        ("east", "seat", False),
        ("on", "no", False),
        (r"\text{No.}", "no", True),
        ("ba", "ab", True),
        # what is too small for six decimal places
        (r"9.1\times10^{-31}", r"1.6\times10^{-19}", False),
        (r"x=9.1\times10^{-31}", r"1.6\times10^{-19}", False),
        (r"1.60\times10^{-19}", r"1.6\cdot10^{-19}", True),
        ("0.0000003", "0.0000001", False),
        ("0.000333", "1/3000", True),
        ("0", r"\sin(\pi)", True),
        # a magnitude is no unit
        ("2 thirds", "2", False),
        ("5 millions", "5", False),
        (r"12\text{ million}", "12", False),
        (r"12\text{ million}", "12 million", True),
        ("3 quarters", "3", True),  # coins
        ("5 fifth graders", "5", True),
        # choice letters
        ("B", "B", True),
        ("b", "B", True),
        (r"\text{(B)}", "B", True),
        ("B. 12", "B", True),
        ("B", "(B)", True),
        ("A", "B", False),
        ("", "5", False),
    ],
)
def test_boxed_forms(given: str, reference: str, right: bool) -> None:
    assert accuracy(f"so it is $\\boxed{{{given}}}$.", reference) == float(right)


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        (r"\boxed{3}, no: \boxed{4}", "4", True),
        (r"\boxed{3}, no: \boxed{4}", "3", False),
        (r"\boxed{3}, so the final answer is 4", "4", False),  # the box counts, not what stands around it
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}", True),
        (r"\boxed{\boxed{5}}", "5", True),
        (r"\boxed{3", "3", False),  # cut off before the end
        ("The answer is 12.", "12", True),
        ("I had 5, and 7 more make 12", "12", True),
        (r"so it is $\frac{3}{4}$", "0.75", True),
        ("The answer is (B).", "B", True),
        ("The answer is C", "B", False),
        ("To add 58 and 47, you simply add them together: 58 + 47 = 105.", "105", True),
        ("To add 58 and 47, we perform the operation of 58 + 47 = 105.", "105", True),
        ("To add 58 and 47, we perform the operation of 58 + 47 = 104.", "104", False),
        ("To add 58 and 47, we perform the operation of 58 + 47.", "105", False),
        ("", "12", False),
        ("<think>6*7</think><answer>42</answer>", "42", True),
        ("<answer>-5</answer>", "-5", True),
        ("<answer>The answer is 41.</answer><answer>The answer is 42.</answer> Not 41", "42", True),
        (r"<answer>3</answer> so \boxed{4}", "3", False),
        ("A common mistake is to add. So the right one is B.", "B", True),
        ("A common mistake is to add. So the right one is B.", "A", False),
        ("I do not know", "I", False),
        ("It is A because 3 is odd.", "A", True),
    ],
)
def test_which_answer_counts(completion: str, reference: str, right: bool) -> None:
    assert accuracy(completion, reference) == float(right)


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        # labels of parts
        (
            "(a) 3, (b) 5",
            ["(a) 3, (b) 5", "a) 3.0; b) 5", "(A) 3 (B) 5", r"\text{(a)} 3 \\ \text{(b)} 5", "(a) 3 and (b) 5."],
            ["(a) 7, (b) 9", "(a) 5, (b) 3", "(a) 3", "(a)", "A", "(a) 3, (b) 9", "(a) 3, (b) 5, (c) 6", "5"],
        ),
        ("a) 3, b) 5", ["(a) 3, (b) 5"], ["a) 7, b) 5", "a", "5"]),
        ("(a) 3\n(b) 5", ["(a) 3, (b) 5"], ["(a) 7\n(b) 5", "5"]),
        ("A: 3, B: 5", ["A: 3, B: 5"], ["A: 7, B: 9", "A"]),
        ("(I) 3, (II) 5", ["(i) 3, (ii) 5"], ["(I) 7, (II) 9", "I"]),
        # ratios, expressions, several choices
        ("a:b=2:3", ["a:b=2:3", "a:b=4:6"], ["a:b=3:4", "a", "A"]),
        ("A: B = 2: 3", ["A: B = 2: 3"], ["A: B = 3: 4", "A"]),
        ("(A)^2", ["(A)^2"], ["A"]),
        ("(a)+1", ["1+a"], ["a"]),
        ("(A), (C)", ["(C), (A)"], ["A", "C"]),
        ("(A) and (C)", ["(A) and (C)"], ["A"]),
        # names
        ("E. coli", ["E. coli"], ["E", "(E)", "E. faecalis"]),
        ("J. K. Rowling", ["J. K. Rowling"], ["J", "J. K. Simmons"]),
        ("B.Sc.", ["B.Sc."], ["B"]),
        # a choice with the text of its option
        ("(B) 12", ["B", "b", "(B)", "B. 12", "(B) 12.0", r"\text{(B) } 12"], ["B. 13", "(A) 12", "A", "12, 13"]),
        ("B. Paris", ["B", "B) paris"], ["B. London", "A"]),
        ("B. the cell wall", ["B", "(B) The cell wall"], ["B. the cell"]),
        ("(D) Both (A) and (B)", ["D", "(D) Both (A) and (B)"], ["A", "(A) and (B)"]),
        # an answer is one choice too
        ("A", ["(A) 3", "A: 3", "A.3", "(A) **3**"], ["(a) 3, (b) 5", "a:b=2:3", "(A) or (B)", "A. B. C. D.", "A) 3 B) 5"]),
        ("D", ["(D) Both (A) and (B)"], []),
    ],
)
def test_a_choice_is_the_whole_answer(reference: str, right: list[str], wrong: list[str]) -> None:
    assert [given for given in right if accuracy(rf"\boxed{{{given}}}", reference) != 1.0] == []
    assert [given for given in wrong if accuracy(rf"\boxed{{{given}}}", reference) != 0.0] == []


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        ("So (a) 7.\nThe answer is (a) 3, (b) 5.", "(a) 3, (b) 5", True),
        ("The answer is (a) 7, (b) 9.", "(a) 3, (b) 5", False),
        ("The answer is A.", "(a) 3, (b) 5", False),
        ("The answer is (A) 7, (B) 9.", "(A) 3, (B) 5", False),
        ("The answer is A.", "a:b=2:3", False),
        ("The answer is E. faecalis.", "E. coli", False),
        ("<answer>E. coli</answer>", "E. coli", True),
        ("The answer is (B).", "(B) 12", True),
        ("The answer is **(B) 12**.", "(B) 12", True),
        ("The answer is (B) 13.", "(B) 12", False),
        ("The answer is (B) 120.", "(B) 12", False),
    ],
)
def test_a_choice_is_the_whole_answer_without_a_box_too(completion: str, reference: str, right: bool) -> None:
    assert accuracy(completion, reference) == float(right)


def test_several_references_and_numbers() -> None:
    assert accuracy(r"\boxed{0.5}", ["2", r"\frac{1}{2}"]) == 1.0
    assert accuracy(r"\boxed{4}", 4) == 1.0
    assert accuracy(r"\boxed{4}", 4.0) == 1.0
    assert accuracy(r"\boxed{3}", [2, 3]) == 1.0
    assert accuracy(r"\boxed{3}", (2, 4)) == 0.0
    assert accuracy(r"\boxed{0.0000001}", 1e-7) == 1.0
    assert accuracy(r"\boxed{true}", True) == 1.0


@pytest.mark.parametrize("reference", ["", " ", "$$", [], ["1", ""], r"\boxed{}", "<answer> </answer>"])
def test_a_blank_reference_is_no_score_of_zero(reference: Any) -> None:
    with pytest.raises(ValueError, match="the reference answer is empty"):
        accuracy(r"\boxed{1}", reference)


@pytest.mark.parametrize("reference", [{"value": 1}, b"1", float("nan"), float("inf"), None, [1, {}]])
def test_a_reference_that_is_no_text_and_no_number_is_refused(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"the reference answer is (of type|not a finite number).*"):
        accuracy(r"\boxed{1}", reference)


@pytest.mark.parametrize(
    "reference", [1, 1.0, numpy.int64(1), numpy.float32(1.0), numpy.array([2, 1]), numpy.array(1), [1], Decimal("1.0")]
)
def test_numbers_of_all_kinds_are_references(reference: Any) -> None:
    assert accuracy(r"\boxed{1}", reference) == 1.0
    assert accuracy(r"\boxed{3}", reference) == 0.0


@pytest.mark.parametrize("reference", ["<answer>28</answer>", r"\boxed{28}", r"$\boxed{28}$", r"<answer>\boxed{28}</answer>"])
def test_a_box_or_a_tag_around_the_whole_reference_is_unwrapped(reference: str) -> None:
    assert accuracy(r"\boxed{28}", reference) == 1.0
    assert accuracy("<answer>28</answer>", reference) == 1.0
    assert accuracy(r"\boxed{2}", reference) == 0.0


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "1+", "$", "\\frac{1}{", "answer is ", "1 ", "[ ", "$1$ and ", "9^"])
def test_nonsense_of_any_length_is_judged_quickly(piece: str) -> None:
    started = time.perf_counter()
    assert accuracy(piece * 10_000, "2") == 0.0
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize(
    "endless",
    [
        "9^{9^{9}}",
        "9^{(9^9)}",
        "2^{2^{100}}",
        r"2^{3\cdot 9^{9}}",
        "2^{1000000000}",
        "10000000!",
        "(10^9)!",
        "((9!)!)!",
        r"\binom{10^9}{10^8}",
        r"{10^9 \choose 10^8}",
        r"\prod_{n=1}^{1000000} n",
        "(x+1)^{10000}",
        r"\left(x+y+z\right)^{300}",
    ],
)
def test_what_cannot_be_written_out_is_wrong_at_once_unless_it_is_the_reference(endless: str) -> None:
    started = time.perf_counter()
    assert accuracy(rf"\boxed{{{endless}}}", "2") == 0.0
    assert accuracy(f"The answer is ${endless}$", "2") == 0.0
    assert accuracy(rf"\boxed{{{endless}}}", endless) == 1.0
    assert accuracy(r"\boxed{5}", endless) == 0.0
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("2^2+3^2", "3^2+4"),
        ("x^{2^n}", "x^{2^{n}}"),
        ("e^{x^2}", r"\exp(x^2)"),
        ("5! \\cdot 3!", "6!"),
        (r"\binom{10}{5}^2", r"4\cdot 15876"),
        (r"\left(-1\right)^{2019}", "-1"),
        ("(n+1)!", "(1+n)!"),
        ("(x^2)^3", "x^6"),
    ],
)
def test_ordinary_powers_and_factorials_are_read(given: str, reference: str) -> None:
    assert accuracy(rf"\boxed{{{given}}}", reference) == 1.0


def test_plain_numbers_agree_with_math_verify() -> None:
    draw = random.Random(0)
    for _ in range(400):
        first = _number(draw)
        second = draw.choice([first, _number(draw), first + ".0" if "." not in first else first + "0", first.lstrip("-")])
        parsed = [math_verify.parse(f"${text}$", parsing_timeout=None) for text in (first, second)]
        expected = math_verify.verify(parsed[0], parsed[1], timeout_seconds=None)
        assert accuracy(f"\\boxed{{{second}}}", first) == float(expected), (first, second)


@pytest.mark.parametrize("shape", ["({}, {})", "[{},{}]", "[{}, {})", r"\{{{}, {}\}}", "x={}", "({}, {}, {})", r"\{{{},{},{}\}}", "{}, {}"])
def test_plain_lists_agree_with_math_verify(shape: str) -> None:
    draw = random.Random(shape)
    for _ in range(40):
        numbers = [draw.choice(["1", "2", "2.0", "-3", "0.5"]) for _ in range(3)]
        others = draw.choice([numbers, numbers[::-1], [draw.choice(["1", "2", "-3"]) for _ in range(3)]])
        first, second = shape.format(*numbers), shape.format(*others)
        parsed = [math_verify.parse(f"${text}$", parsing_timeout=None) for text in (first, second)]
        expected = math_verify.verify(parsed[0], parsed[1], timeout_seconds=None)
        if shape != "[{}, {})" or all(
            float(pair[0]) < float(pair[1]) for pair in (numbers, others)
        ):  # to math-verify all empty ones are equal
            assert accuracy(f"\\boxed{{{second}}}", first) == float(expected), (first, second)


def _number(draw: random.Random) -> str:
    whole = draw.choice(["", "-"]) + str(draw.randrange(10 ** draw.randint(1, 9)))
    return whole + draw.choice(["", "", f".{draw.randrange(10 ** draw.randint(1, 6))}"])


def _gsm8k(every: bool) -> list[dict[str, Any]]:
    """All 8,132 real rows, which must be there; or forty rows of that form."""
    folder = Path(os.environ.get("RLKIT_GSM8K") or ROOT.parent / "shared" / "data" / "gsm8k")
    files = [folder / "train.jsonl", folder / "test.jsonl"] if every else [ROOT / "tests" / "data" / "gsm8k_like.jsonl"]
    assert all(file.is_file() for file in files), f"no GSM8K in {folder}: set RLKIT_GSM8K to the folder of its train.jsonl and test.jsonl"
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _changed(reference: str) -> str:
    """The number after this one, written in the same way."""
    digits = re.sub(r"[^\d.-]", "", reference)
    number = str(int(digits) + 1) if "." not in digits else str(float(digits) + 1)
    return f"{int(number):,}" if "," in reference and "." not in number else number


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly(part="faults"))])
def test_every_gsm8k_reference_earns_1_boxed_and_0_changed_in_under_a_minute(every: bool) -> None:
    references = [row["answer"].rpartition("####")[2].strip() for row in _gsm8k(every)]
    assert len(references) == 40 or len(references) > 8000
    with RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings()) as client:
        client.wait_until_ready()
        started = time.monotonic()
        for number, reference in enumerate(references):
            client.submit((number, "right"), {"prompt": "p", "completion": f"so \\boxed{{{reference}}}", "answer": reference})
            client.submit((number, "wrong"), {"prompt": "p", "completion": f"so \\boxed{{{_changed(reference)}}}", "answer": reference})
        right = client.collect([(number, "right") for number in range(len(references))])
        wrong = client.collect([(number, "wrong") for number in range(len(references))])
        seconds = time.monotonic() - started
    assert [references[number] for number, _ in right if right[number, "right"].reward != 1.0] == []
    assert [references[number] for number, _ in wrong if wrong[number, "wrong"].reward != 0.0] == []
    assert seconds < 60


def test_answers_of_all_forms_in_eight_samples_each() -> None:
    forms = [r"\frac{%d}{3}", r"\sqrt{%d}", r"\{%d, 1\}", r"%d \text{ cm}", "%d,000", r"%d\%%", "x=%d", "(%d, 2)", "%d"]
    problems = [(forms[n % 9] % (n + 2), forms[n % 9] % (n + 3)) for n in range(180)]  # right, wrong
    samples = [(problems[n // 8][0], problems[n // 8][n % 2]) for n in range(8 * 180)]  # half of them right
    with RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings()) as client:
        client.wait_until_ready()
        for number, (reference, given) in enumerate(samples):
            client.submit(number, {"prompt": "p", "completion": f"\\boxed{{{given}}}", "answer": reference})
        results = client.collect(range(len(samples)))
    assert [sample for number, sample in enumerate(samples) if results[number].reward != float(number % 2 == 0)] == []
