r"""Is the final answer right? Mathematical equality as math-verify sees it: 1/2 is 0.5, 1,000 is 1000, {1, 2} is {2, 1}.

The answer is what stands in the last \boxed{}; where there is none, what math-verify finds in the end of the text. math-verify's own time
limits are off: they need signals of the main thread, and rlkit ends a worker that takes too long.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

LONGEST_ANSWER = 2000  # characters; no answer is that long, and a parser may need minutes for what is
SEARCHED_TAIL = 3000  # characters at the end in which an answer without a box is looked for
CHOICES = "ABCDEFGHIJ"
MATHEMATICS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
CHOICE_LETTERS = (StringExtractionConfig(strings=tuple(CHOICES)),)
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off, which is meant

BRACES = re.compile(r"\\\\|\\[{}]|\\f?box(?:ed)?\s*\{|[{}]")
PLAIN_NUMBER = r"-?(?:0|[1-9]\d{0,8})(?:\.\d{1,6})?"
ASSIGNED_OR_LISTED = re.compile(
    rf"(?:(?P<name>[a-z])\s*=\s*|(?P<open>[(\[]|\\\{{))?(?P<numbers>\s*{PLAIN_NUMBER}\s*(?:,\s*{PLAIN_NUMBER}\s*)*)(?P<close>[)\]]|\\\}})?"
)
GROUPED_DIGITS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\,|\\ |\\!|,\\!|~| )\d{3})+(?![\d,])")
DOLLAR = re.compile(r"\\?[$€£¥]")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
NUMBER_WITH_WORDS = re.compile(r"(-?[\d.,/]*\d)\s+([A-Za-z]{2,}(?:[ /-][A-Za-z]+)*)\.?")
SCALES = re.compile(r"\b(?:hundred|thousand|million|billion|trillion|dozen|percent|pct|pi|squared|cubed|and|or)\b", re.IGNORECASE)
CHOICE = re.compile(rf"\(?([{CHOICES}{CHOICES.lower()}])\)?(?:[.:)]?|[.:)]\s*\S.*)", re.DOTALL)
BRACKETED_CHOICE = re.compile(rf"\(([{CHOICES}])\)")


def accuracy(completion: str, answer: Any, **columns: Any) -> float:
    r"""1.0 where the completion's final answer equals `answer` (or one of them, if it is a list), else 0.0.

    Raises ValueError where the reference itself cannot be read: that is a fault of the data, not of the completion.
    """
    references = [_tidy(str(one)) for one in (answer if isinstance(answer, (list, tuple)) else [answer])]
    if not references or not all(references):
        raise ValueError(f"the reference answer is empty: {answer!r}")
    boxed = last_boxed(completion)
    if boxed is None:
        return float(any(_found_in_text(completion[-SEARCHED_TAIL:], reference) for reference in references))
    if len(boxed) > LONGEST_ANSWER:
        return 0.0
    return float(any(_same(reference, _tidy(boxed)) for reference in references))


def last_boxed(text: str) -> str | None:
    r"""What stands in the last complete \boxed{...} or \fbox{...}, or None. Linear in the text, whatever it holds."""
    opened: list[int | None] = []  # where the contents of a box begin; None for other braces
    last: tuple[int, int] | None = None
    for token in BRACES.finditer(text):
        if token[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
        elif token[0][-1] == "{" and len(token[0]) != 2:  # of length 2: an escaped brace, which groups nothing
            opened.append(token.end() if len(token[0]) > 1 else None)
    return text[slice(*last)].strip() if last else None


def _tidy(answer: str) -> str:
    """The same answer without what carries no meaning: currency signs, separators of thousands, a box or text command around it."""
    answer = answer.strip()
    if answer.startswith(("\\boxed", "\\fbox")) and (inner := last_boxed(answer)) is not None:
        answer = inner
    answer = DOLLAR.sub("", answer).strip()
    if wrapped := WRAPPED.fullmatch(answer):
        answer = wrapped[1].strip()
    answer = GROUPED_DIGITS.sub(lambda match: re.sub(r"\D", "", match[0]), answer)
    if (counted := NUMBER_WITH_WORDS.fullmatch(answer)) and not SCALES.search(counted[2]):
        answer = rf"{counted[1]}\text{{ {counted[2]}}}"  # math-verify knows a unit by its being text
    return answer


@lru_cache(maxsize=16384)  # the samples of a group say the same again and again; sympy takes 1 to 25 ms to compare
def _same(reference: str, given: str) -> bool:
    if reference == given:
        return True
    expected, found = _numbers(reference), _numbers(given)
    if expected and found and expected[0] == found[0]:
        return expected == found  # what math-verify says as well, a hundred times faster: it compares six decimal places
    if choice := _choice(reference):
        return _choice(given) == choice
    return _equal(_parsed(reference), _parse(f"${given}$", MATHEMATICS))


def _numbers(answer: str) -> tuple[str, tuple[float, ...]] | None:
    """A plain number, `x = number`, or a tuple, interval or set of them: its shape and the numbers; None for all else."""
    match = ASSIGNED_OR_LISTED.fullmatch(answer)
    if match is None:
        return None
    numbers, brackets = tuple(float(number) for number in match["numbers"].split(",")), (match["open"] or "") + (match["close"] or "")
    if not brackets:
        return (f"{match['name']}=", numbers) if len(numbers) == 1 else None
    if brackets == r"\{\}":
        return brackets, tuple(sorted(set(numbers)))
    if brackets in ("()", "[]"):
        return (brackets, numbers) if len(numbers) > 1 else None
    # a half-open interval, unless it is empty: all empty ones are the same to math-verify
    return (brackets, numbers) if brackets in ("(]", "[)") and len(numbers) == 2 and numbers[0] < numbers[1] else None


def _choice(answer: str) -> str | None:
    match = CHOICE.fullmatch(WRAPPED.sub(r"\1", answer).strip())
    return match[1].upper() if match else None


def _found_in_text(text: str, reference: str) -> bool:
    if choice := _choice(reference):
        return _equal((choice.lower(),), _parse(BRACKETED_CHOICE.sub(r" \1 ", text), CHOICE_LETTERS))
    return _equal(_parsed(reference), _parse(text, MATHEMATICS))


@lru_cache(maxsize=4096)
def _parsed(reference: str) -> tuple[Any, ...]:
    parsed = tuple(_parse(f"${reference}$", MATHEMATICS))
    if not parsed:
        raise ValueError(f"math-verify cannot read the reference answer {reference!r}")
    return parsed


def _equal(reference: tuple[Any, ...], given: list[Any]) -> bool:
    return bool(verify(list(reference), given, timeout_seconds=None))


def _parse(text: str, targets: tuple[Any, ...]) -> list[Any]:
    return list(parse(text, targets, parsing_timeout=None))


_found_in_text("1", "2")  # the parser compiles its patterns at the first call: now, and not on the first sample's time
