r"""Whether the final answer is right: mathematical equality by math-verify. 1/2 equals 0.5, 1,000 equals 1000, {1, 2} equals {2, 1}.

The answer is the content of the last \boxed{}; where there is none, that of the last <answer></answer>; else what math-verify finds at the
end of the text. The time limits of math-verify are off: they need signals of the main thread, and rlkit kills a worker that takes too long.
"""

from __future__ import annotations

import logging
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify  # type: ignore[import-untyped]

MAX_ANSWER_CHARACTERS = 2000  # no answer is longer, and the parser may need minutes for a longer one
SEARCHED_CHARACTERS = 3000  # at the end of the text, in which an answer without a box is searched
CLOSE, SMALL, NOISE = 0.005, 1e-3, 1e-100  # below SMALL three significant digits must agree; below NOISE it is a computed 0
CHOICES = "ABCDEFGHIJ"
MATHEMATICS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
CHOICE_LETTERS = (StringExtractionConfig(strings=tuple(CHOICES)),)
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off, which is intended

# What cannot be computed in time: sympy expands powers, factorials and products exactly. An answer with one of these, or to a reference
# with one, is right only where both are the same text. Up to four digits are allowed; two where a sum of symbols is expanded; none for
# powers of powers.
HUGE = re.compile(
    r"""\^[\s{(+-]*\d{5,}                                                                       # 2^{10000}, \prod_{n=1}^{10000}
      | \^\s*(?:\d+\s*|(?:[{(]\s*)+(?:[^{}()^a-zA-Z\\]|\\(?:cdot|times)(?![a-z]))*\d\s*)\^[\s{(]*\d      # 9^{9^9}, 2^{3\cdot9^{9}}
      | \d{5,}[\s)}]*! | ![\s)}]*! | \d\s*\^[^()a-zA-Z]*\)\s*!                                 # 10000!, (9!)!, (10^9)!
      | \\[dt]?binom\s*\{\s*(?:\d{5,}|\d+\s*\^) | (?:\d{5,}|\d\s*\^[\s{]*\d+)[\s}]*\\choose  # \binom{10^9}{10^8}
      | \([^()]*(?<![\\a-zA-Z])[a-zA-Z][^()]*\)\s*\^[\s{]*\d{3,}                               # (x+1)^{100}""",
    re.VERBOSE,
)
TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*)</answer>", re.DOTALL)
BRACES = re.compile(r"\\\\|\\[{}]|\\f?box(?:ed)?\s*\{|[{}]")
PLAIN_NUMBER = r"-?(?:0|[1-9]\d{0,8})(?:\.\d{1,6})?"
ASSIGNED_OR_LISTED = re.compile(
    rf"(?:(?P<name>[a-z])\s*=\s*|(?P<open>[(\[]|\\\{{))?(?P<numbers>\s*{PLAIN_NUMBER}\s*(?:,\s*{PLAIN_NUMBER}\s*)*)(?P<close>[)\]]|\\\}})?"
)
SEPARATOR = r"\{,\}|\\,|\\ |\\!|,\\!|~| "  # of thousands
GROUPED_DIGITS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:(?:,|{SEPARATOR})\d{{3}})+(?![\d,])")
GROUPED_IN_A_LIST = re.compile(rf"(?<![\d.])\d{{1,3}}(?:(?:{SEPARATOR})\d{{3}})+(?!\d)")  # (100,200): a comma alone separates two numbers
LIST = re.compile(r"(?:[(\[]|\\\{)[^()\[\]]*,")
DOLLAR = re.compile(r"\\?[$€£¥]")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
NUMBER_WITH_WORDS = re.compile(r"(-?[\d.,/]*\d)\s+([A-Za-z]{2,}(?:[ /-][A-Za-z]+)*)\.?")
MAGNITUDES = re.compile(  # no quarters and halves: three quarters may be coins
    r"\b(?:(?:hundred|thousand|lakh|million|crore|billion|trillion|dozen)s?"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|billionth)(?:s\b|$))",
    re.IGNORECASE,
)
NO_UNITS = re.compile(rf"{MAGNITUDES.pattern}|\b(?:percent|pct|pi|squared|cubed|and|or)\b", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_](?:[ -]?[^\W\d_])+")
SURELY_WORDS = re.compile(r"[^\W\d_]{4}|^(?:no|on)$", re.IGNORECASE)  # shorter ones may be products: ab equals ba
# What follows a letter without being the text of its option: (A)^2, (A) \cup (B), (A), (C).
NO_OPTION = r"[\^_=/!'|&∪∩,;]|\*(?!\*)|[+-](?!\d)|\\(?:cup|cap|times|cdot|in|to|subset)\b|(?:and|or)\b"
CHOICE = re.compile(
    rf"""\(?(?P<letter>[{CHOICES}{CHOICES.lower()}])(?:\)?[.:)]?
      | (?: \)[.:]?(?![+-])\s*(?!{NO_OPTION})                                           # (B) 12
          | \)?\.\s*(?![a-zA-Z]\.\s*\S|{NO_OPTION})                                     # B. 12; not J. K. Rowling
          | \)?:(?:\s+(?![a-zA-Z]\s*[:=]|{NO_OPTION})|(?=[^\W\d_]{{2}}[^:=]*\Z)))       # B: 12; not a:b=2:3
        (?P<option>\S.*))""",
    re.DOTALL | re.VERBOSE,
)
ABBREVIATED = re.compile(r"[A-Z]\.(?:\s*[a-z]{3,}\.?\Z|[A-Za-z])")  # E. coli, B.Sc.
LABEL = re.compile(r"(?<![\w\\)}])(?:\(([A-Ja-j]|[IVXivx]{2,4})\)[.:]?|(?<!\()([A-Ja-j]|[IVXivx]{2,4})(?:\)|[.:](?=\s)))\s*")
LABELS = tuple("abcdefghij"), ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
END_OF_PART = re.compile(r"(?:\s|[,;.]|\\\\|\\q?quad|\band\b)+\Z")
BRACKETED_CHOICE = re.compile(rf"\(([{CHOICES}])\)")
ARTICLE = re.compile(r"\b(?:A|I)(?=[ \t]+(?!(?:because|since|as|and|or|is|for)\b)[a-z]|['’])")  # "A cat", "I think" are not choices


def accuracy(completion: str, answer: Any, **columns: Any) -> float:
    r"""1.0 where the final answer of the completion equals `answer` (or one of them, if it is a list), else 0.0.

    Raises ValueError where the reference cannot be parsed: that is an error in the data, not in the completion.
    """
    references = [_to_text(one) for one in (answer if isinstance(answer, (list, tuple)) else [answer])]
    if not references or not all(map(_normalise, references)):
        raise ValueError(f"the reference answer is empty: {answer!r}")
    prediction = find_last_boxed(completion)
    if prediction is not None:
        return float(any(_is_right(reference, prediction) for reference in references))
    if tagged := TAGGED.findall(completion):  # the answer alone, or a sentence with it
        completion = tagged[-1]
        if any(_is_right(reference, completion.strip()) for reference in references):
            return 1.0
    return float(any(_search_text(completion[-SEARCHED_CHARACTERS:], _normalise(reference)) for reference in references))


def _to_text(answer: Any) -> str:
    return f"{Decimal(repr(answer)):f}" if isinstance(answer, float) else str(answer)  # 1e-07 would be parsed as 1 times e minus 7


def find_last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} or \fbox{...}, or None. Takes time linear in the length of any text."""
    open_braces: list[int | None] = []  # where the content of a box begins; None for other braces
    last: tuple[int, int] | None = None
    for token in BRACES.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
        elif token[0][-1] == "{" and len(token[0]) != 2:  # of length 2: an escaped brace, which opens no group
            open_braces.append(token.end() if len(token[0]) > 1 else None)
    return text[slice(*last)].strip() if last else None


def _is_right(reference: str, prediction: str) -> bool:
    if len(prediction) > MAX_ANSWER_CHARACTERS:
        return False
    expected, found = _parse_words(reference), _parse_words(prediction)
    if expected and found and (expected[1] or found[1]):
        return expected[0] == found[0]  # math-verify reads letters as symbols in any order: east would equal seat
    return _is_same(_normalise(reference), _normalise(prediction))


def _parse_words(answer: str) -> tuple[str, bool] | None:
    """An answer of letters only: casefolded, and whether it must be words: in a text command, or too long for a product of symbols."""
    answer = _strip_box(answer)
    wrapped = WRAPPED.fullmatch(answer)
    plain = " ".join((wrapped[1] if wrapped else answer).removesuffix(".").split())
    return (plain.casefold(), bool(wrapped or SURELY_WORDS.search(plain))) if LETTERS.fullmatch(plain) else None


def _strip_box(answer: str) -> str:
    """The answer without currency signs and without a box around it."""
    answer = answer.strip()
    if answer.startswith(("\\boxed", "\\fbox")) and (inner := find_last_boxed(answer)) is not None:
        answer = inner
    return DOLLAR.sub("", answer).strip()


def _normalise(answer: str) -> str:
    """The answer without parts that have no meaning: those that _strip_box removes, separators of thousands, a text command around it."""
    answer = _strip_box(answer)
    if wrapped := WRAPPED.fullmatch(answer):
        answer = wrapped[1].strip()
    grouped = GROUPED_IN_A_LIST if LIST.search(answer) else GROUPED_DIGITS
    answer = grouped.sub(lambda match: re.sub(r"\D", "", match[0]), answer)
    answer = WRAPPED.sub(lambda match: f" {match[1].strip()} " if MAGNITUDES.search(match[1].strip()) else match[0], answer).strip()
    if (counted := NUMBER_WITH_WORDS.fullmatch(answer)) and not NO_UNITS.search(counted[2]):
        answer = rf"{counted[1]}\text{{ {counted[2]}}}"  # math-verify recognises a unit by its text command
    return answer


@lru_cache(maxsize=16384)  # the samples of a group often have equal answers; sympy takes 1 to 25 ms to compare
def _is_same(reference: str, prediction: str) -> bool:
    if reference == prediction:
        return True
    expected, found = _parse_numbers(reference), _parse_numbers(prediction)
    if expected and found and expected[0] == found[0]:
        return expected == found  # the same result as math-verify, which compares six decimal places, a hundred times faster
    if parts := _split_parts(reference):
        return _match_parts(parts, _split_parts(prediction))
    if choice := _parse_reference_choice(reference):
        letter, option = _parse_choice(prediction) or ("", "")
        return letter == choice[0] and (not option or not choice[1] or _is_right(choice[1], option))
    if HUGE.search(reference) or HUGE.search(prediction):
        return False
    return _is_equal(_parse_reference(reference), _parse(f"${prediction}$", MATHEMATICS))


def _parse_numbers(answer: str) -> tuple[str, tuple[float, ...]] | None:
    """The shape and the numbers of a plain number, `x = number`, or a tuple, interval or set of them; None for all else."""
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
    # a half-open interval, unless it is empty: math-verify treats all empty ones as equal
    return (brackets, numbers) if brackets in ("(]", "[)") and len(numbers) == 2 and numbers[0] < numbers[1] else None


def _parse_choice(answer: str) -> tuple[str, str] | None:
    """The letter of a choice, and the text of its option or an empty text; None where the whole answer is not a choice."""
    match = None if _split_parts(answer) else CHOICE.fullmatch(WRAPPED.sub(r"\1", answer).strip())
    return (match["letter"].upper(), match["option"] or "") if match else None


def _parse_reference_choice(reference: str) -> tuple[str, str] | None:
    """The same for a reference, in which E. coli is a name; in an answer it may be option E with its text."""
    return None if ABBREVIATED.match(reference) else _parse_choice(reference)


def _split_parts(answer: str) -> tuple[str, ...] | None:
    """The texts of an answer in parts, such as (a) 3, (b) 5; None for other answers."""
    answer = WRAPPED.sub(r"\1", answer).strip()
    labels = list(LABEL.finditer(answer))
    names = tuple((label[1] or label[2]).lower() for label in labels)
    if len(labels) < 2 or labels[0].start() or names not in (LABELS[0][: len(names)], LABELS[1][: len(names)]):
        return None
    ends = [*(label.start() for label in labels[1:]), len(answer)]
    texts = tuple(END_OF_PART.sub("", answer[label.end() : end]) for label, end in zip(labels, ends, strict=True))
    return texts if all(texts) else None


def _match_parts(reference: tuple[str, ...], prediction: tuple[str, ...] | None) -> bool:
    return prediction is not None and len(prediction) == len(reference) and all(map(_is_right, reference, prediction))


def _search_text(text: str, reference: str) -> bool:
    if parts := _split_parts(reference):
        starts = [label.start() for label in LABEL.finditer(text) if (label[1] or label[2]).lower() in ("a", "i")]
        return any(_match_parts(parts, _split_parts(text[start:])) for start in starts[-1:])
    if choice := _parse_reference_choice(reference):
        found = _parse(ARTICLE.sub("", BRACKETED_CHOICE.sub(r" \1 ", text)), CHOICE_LETTERS)
        return _is_equal((choice[0].lower(),), found) and (not choice[1] or _names_option(ARTICLE.sub("", text), *choice))
    if HUGE.search(reference) or HUGE.search(text):
        return False
    return _is_equal(_parse_reference(reference), _parse(text, MATHEMATICS))


def _names_option(text: str, letter: str, option: str) -> bool:
    """Whether the last mention of a letter stands alone or before its own option, up to the end of the line."""
    mentions = re.findall(rf"(?<!\w){letter}(?!\w)[.:)*$ \t]*([^\n]*)", text)
    rest = mentions[-1].strip(" .*$") if mentions else ""
    return not rest or _is_right(option, rest)


@lru_cache(maxsize=4096)
def _parse_reference(reference: str) -> tuple[Any, ...]:
    parsed = tuple(_parse(f"${reference}$", MATHEMATICS))
    if not parsed:
        raise ValueError(f"math-verify cannot parse the reference answer {reference!r}")
    return parsed


def _is_equal(reference: tuple[Any, ...], prediction: list[Any]) -> bool:
    return any(verify(one, found, timeout_seconds=None) and _is_close(one, found) for one in reference for found in prediction)


def _is_close(reference: Any, found: Any) -> bool:
    """False for two small numbers that differ: math-verify rounds to six decimal places, so 9.1e-31 would equal 1.6e-19."""
    try:
        expected, actual = (float(getattr(one, "rhs", one)) for one in (reference, found))  # rhs: of x = 9.1e-31
    except (TypeError, ValueError, OverflowError):  # not real numbers: the result of math-verify stands
        return True
    largest = max(abs(expected), abs(actual))
    return not NOISE < largest < SMALL or abs(expected - actual) <= CLOSE * largest


def _parse(text: str, targets: tuple[Any, ...]) -> list[Any]:
    return list(parse(text, targets, parsing_timeout=None))


_search_text("1", "2")  # the parser compiles its patterns in the first call: now, and not within the timeout of the first sample
