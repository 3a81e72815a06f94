r"""Is the final answer right? Mathematical equality as math-verify sees it: 1/2 is 0.5, 1,000 is 1000, {1, 2} is {2, 1}.

The answer is what stands in the last \boxed{}; where there is none, in the last <answer></answer>; else what math-verify finds in the end
of the text. math-verify's own time limits are off: they need signals of the main thread, and rlkit ends a worker that takes too long.
"""

from __future__ import annotations

import logging
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

LONGEST_ANSWER = 2000  # characters; no answer is that long, and a parser may need minutes for what is
SEARCHED_TAIL = 3000  # characters at the end in which an answer without a box is looked for
CLOSE, SMALL, NOISE = 0.005, 1e-3, 1e-100  # below SMALL: three significant digits must agree; below NOISE an exact 0 that was reckoned
CHOICES = "ABCDEFGHIJ"
MATHEMATICS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
CHOICE_LETTERS = (StringExtractionConfig(strings=tuple(CHOICES)),)
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off, which is meant

# What cannot be written out in time: sympy reckons powers, factorials and products exactly. An answer with one of these, or to a reference
# with one, is right only to the letter. The bound is four digits; two where a sum of symbols is multiplied out; none for powers of powers.
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
GROUPED_IN_A_LIST = re.compile(rf"(?<![\d.])\d{{1,3}}(?:(?:{SEPARATOR})\d{{3}})+(?!\d)")  # (100,200): a bare comma parts two numbers
LIST = re.compile(r"(?:[(\[]|\\\{)[^()\[\]]*,")
DOLLAR = re.compile(r"\\?[$€£¥]")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
NUMBER_WITH_WORDS = re.compile(r"(-?[\d.,/]*\d)\s+([A-Za-z]{2,}(?:[ /-][A-Za-z]+)*)\.?")
MAGNITUDES = re.compile(  # no quarters and halves: three quarters may be three coins
    r"\b(?:(?:hundred|thousand|lakh|million|crore|billion|trillion|dozen)s?"
    r"|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|billionth)(?:s\b|$))",
    re.IGNORECASE,
)
NO_UNITS = re.compile(rf"{MAGNITUDES.pattern}|\b(?:percent|pct|pi|squared|cubed|and|or)\b", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_](?:[ -]?[^\W\d_])+")
SURELY_WORDS = re.compile(r"[^\W\d_]{4}|^(?:no|on)$", re.IGNORECASE)  # shorter ones may be products: ab is ba
# What follows a letter and does not begin its option's text: (A)^2, (A) \cup (B), (A), (C).
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
ARTICLE = re.compile(r"\b(?:A|I)(?=[ \t]+(?!(?:because|since|as|and|or|is|for)\b)[a-z]|['’])")  # "A cat", "I think": no choices


def accuracy(completion: str, answer: Any, **columns: Any) -> float:
    r"""1.0 where the completion's final answer equals `answer` (or one of them, if it is a list), else 0.0.

    Raises ValueError where the reference itself cannot be read: that is a fault of the data, not of the completion.
    """
    references = [_text(one) for one in (answer if isinstance(answer, (list, tuple)) else [answer])]
    if not references or not all(map(_tidy, references)):
        raise ValueError(f"the reference answer is empty: {answer!r}")
    given = last_boxed(completion)
    if given is not None:
        return float(any(_right(reference, given) for reference in references))
    if tagged := TAGGED.findall(completion):  # a bare answer, or a sentence that holds it
        completion = tagged[-1]
        if any(_right(reference, completion.strip()) for reference in references):
            return 1.0
    return float(any(_found_in_text(completion[-SEARCHED_TAIL:], _tidy(reference)) for reference in references))


def _text(answer: Any) -> str:
    return f"{Decimal(repr(answer)):f}" if isinstance(answer, float) else str(answer)  # 1e-07 would read as e times 1, less 7


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


def _right(reference: str, given: str) -> bool:
    if len(given) > LONGEST_ANSWER:
        return False
    words, said = _words(reference), _words(given)
    if words and said and (words[1] or said[1]):
        return words[0] == said[0]  # math-verify takes letters for symbols whose order is free: east is seat
    return _same(_tidy(reference), _tidy(given))


def _words(answer: str) -> tuple[str, bool] | None:
    """An answer of letters alone: casefolded, and whether it must be words: by a text command, or too long for a product of symbols."""
    answer = _bare(answer)
    wrapped = WRAPPED.fullmatch(answer)
    plain = " ".join((wrapped[1] if wrapped else answer).removesuffix(".").split())
    return (plain.casefold(), bool(wrapped or SURELY_WORDS.search(plain))) if LETTERS.fullmatch(plain) else None


def _bare(answer: str) -> str:
    """The same answer without currency signs and a box around it."""
    answer = answer.strip()
    if answer.startswith(("\\boxed", "\\fbox")) and (inner := last_boxed(answer)) is not None:
        answer = inner
    return DOLLAR.sub("", answer).strip()


def _tidy(answer: str) -> str:
    """The same answer without what carries no meaning: what _bare takes away, separators of thousands, a text command around it."""
    answer = _bare(answer)
    if wrapped := WRAPPED.fullmatch(answer):
        answer = wrapped[1].strip()
    grouped = GROUPED_IN_A_LIST if LIST.search(answer) else GROUPED_DIGITS
    answer = grouped.sub(lambda match: re.sub(r"\D", "", match[0]), answer)
    answer = WRAPPED.sub(lambda match: f" {match[1].strip()} " if MAGNITUDES.search(match[1].strip()) else match[0], answer).strip()
    if (counted := NUMBER_WITH_WORDS.fullmatch(answer)) and not NO_UNITS.search(counted[2]):
        answer = rf"{counted[1]}\text{{ {counted[2]}}}"  # math-verify knows a unit by its being text
    return answer


@lru_cache(maxsize=16384)  # the samples of a group say the same again and again; sympy takes 1 to 25 ms to compare
def _same(reference: str, given: str) -> bool:
    if reference == given:
        return True
    expected, found = _numbers(reference), _numbers(given)
    if expected and found and expected[0] == found[0]:
        return expected == found  # what math-verify says as well, a hundred times faster: it compares six decimal places
    if parts := _parts(reference):
        return _same_parts(parts, _parts(given))
    if choice := _reference_choice(reference):
        letter, option = _choice(given) or ("", "")
        return letter == choice[0] and (not option or not choice[1] or _right(choice[1], option))
    if HUGE.search(reference) or HUGE.search(given):
        return False
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


def _choice(answer: str) -> tuple[str, str] | None:
    """The letter of a choice, and the text of its option or nothing; None where the answer as a whole is no choice."""
    match = None if _parts(answer) else CHOICE.fullmatch(WRAPPED.sub(r"\1", answer).strip())
    return (match["letter"].upper(), match["option"] or "") if match else None


def _reference_choice(reference: str) -> tuple[str, str] | None:
    """The same of a reference, in which E. coli is a name; in an answer it may be option E and its text."""
    return None if ABBREVIATED.match(reference) else _choice(reference)


def _parts(answer: str) -> tuple[str, ...] | None:
    """The texts of an answer in parts, as (a) 3, (b) 5; None for other answers."""
    answer = WRAPPED.sub(r"\1", answer).strip()
    labels = list(LABEL.finditer(answer))
    names = tuple((label[1] or label[2]).lower() for label in labels)
    if len(labels) < 2 or labels[0].start() or names not in (LABELS[0][: len(names)], LABELS[1][: len(names)]):
        return None
    ends = [*(label.start() for label in labels[1:]), len(answer)]
    texts = tuple(END_OF_PART.sub("", answer[label.end() : end]) for label, end in zip(labels, ends, strict=True))
    return texts if all(texts) else None


def _same_parts(reference: tuple[str, ...], given: tuple[str, ...] | None) -> bool:
    return given is not None and len(given) == len(reference) and all(map(_right, reference, given))


def _found_in_text(text: str, reference: str) -> bool:
    if parts := _parts(reference):
        starts = [label.start() for label in LABEL.finditer(text) if (label[1] or label[2]).lower() in ("a", "i")]
        return any(_same_parts(parts, _parts(text[start:])) for start in starts[-1:])
    if choice := _reference_choice(reference):
        found = _parse(ARTICLE.sub("", BRACKETED_CHOICE.sub(r" \1 ", text)), CHOICE_LETTERS)
        return _equal((choice[0].lower(),), found) and (not choice[1] or _names_option(ARTICLE.sub("", text), *choice))
    if HUGE.search(reference) or HUGE.search(text):
        return False
    return _equal(_parsed(reference), _parse(text, MATHEMATICS))


def _names_option(text: str, letter: str, option: str) -> bool:
    """Whether the last mention of a letter stands alone or before its own option, up to the end of the line."""
    mentions = re.findall(rf"(?<!\w){letter}(?!\w)[.:)*$ \t]*([^\n]*)", text)
    rest = mentions[-1].strip(" .*$") if mentions else ""
    return not rest or _right(option, rest)


@lru_cache(maxsize=4096)
def _parsed(reference: str) -> tuple[Any, ...]:
    parsed = tuple(_parse(f"${reference}$", MATHEMATICS))
    if not parsed:
        raise ValueError(f"math-verify cannot read the reference answer {reference!r}")
    return parsed


def _equal(reference: tuple[Any, ...], given: list[Any]) -> bool:
    return any(verify(right, found, timeout_seconds=None) and _alike(right, found) for right in reference for found in given)


def _alike(right: Any, found: Any) -> bool:
    """False for two small numbers that differ: math-verify rounds to six decimal places, and to it 9.1e-31 is 1.6e-19."""
    try:
        expected, given = (float(getattr(one, "rhs", one)) for one in (right, found))  # rhs: of x = 9.1e-31
    except (TypeError, ValueError, OverflowError):  # no real numbers: math-verify's word holds
        return True
    largest = max(abs(expected), abs(given))
    return not NOISE < largest < SMALL or abs(expected - given) <= CLOSE * largest


def _parse(text: str, targets: tuple[Any, ...]) -> list[Any]:
    return list(parse(text, targets, parsing_timeout=None))


_found_in_text("1", "2")  # the parser compiles its patterns at the first call: now, and not on the first sample's time
