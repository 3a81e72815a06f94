r"""Whether the right letter is chosen. Search order: in \boxed{}, in <answer>, after "answer is", the last line, after "option"."""

from __future__ import annotations

import re
from typing import Any

# A single A or I before a lower-case word is an article or a pronoun ("a good one", "I think"), unless the word can follow a choice.
NO_CHOICE = r"(?!(?-i:[AaI])(?:['’]|[ \t]+(?!(?:because|since|as|and|or|is|for)\b)(?-i:[a-z])))"
LETTER = rf"[\(\[]?\b{NO_CHOICE}([A-Z])\b[\)\]]?"
SAYS = r"(?i:answer|choice|option)\s*(?:(?i:is|would be|must be|should be)\b\s*:?|:)[\s*$]*"
HEDGE = r"(?:I (?:think|believe|guess|say) (?:that )?it(?: is|'s) )?"
MARKED = (  # here the whole content must be one choice
    re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{\s*)?(?:option\s+)?" + LETTER, re.IGNORECASE),
    re.compile(r"<answer>\s*(?:option\s+)?\**" + LETTER, re.IGNORECASE),
)
PLACES = (
    *MARKED,
    re.compile(SAYS + HEDGE + r"\**(?i:option\s+)?" + LETTER),
    re.compile(r"^\s*\**" + LETTER + r"[.:)*\s]*\s*\Z", re.MULTILINE),
    re.compile(r"(?i:answer|choice|option)[\s*]*" + LETTER),
)
RELATION = re.compile(r"\s*(?:[=^+/_|]|:\s*\w+\s*[:=])")  # a:b=2:3
MORE_LETTERS = re.compile(r"(?:(?:[\s,;/&]|and\b|or\b)+[(\[]?[A-Z][)\]]?)+[.\s]*", re.IGNORECASE)


def multiple_choice(completion: str, answer: Any, **columns: Any) -> float:
    """1.0 where the last chosen letter is `answer` (a letter, or a number with 0 for A; or one of them, if it is a list), else 0.0."""
    right = {_parse_letter(one) for one in (answer if isinstance(answer, (list, tuple)) and answer else [answer])}
    for place in PLACES:
        if found := list(place.finditer(completion)):
            letter = found[-1][1].upper()
            return float(letter in right and (place not in MARKED or _is_only_choice(letter, completion[found[-1].end() :])))
    return 0.0


def _is_only_choice(letter: str, rest: str) -> bool:
    """Whether the text after a letter leaves it the only choice: no second letter, no next part as in (a) 3, (b) 5."""
    rest = re.split(r"[}\n]|</", rest, maxsplit=1)[0]
    following = re.escape(chr(ord(letter) + 1))
    next_part = re.search(rf"(?<![\w(])(?:\({following}\)|{following}[).:])\s*\S", rest, re.IGNORECASE)
    return not (next_part or RELATION.match(rest) or MORE_LETTERS.fullmatch(rest))


def _parse_letter(answer: Any) -> str:
    letter = chr(ord("A") + answer) if isinstance(answer, int) and 0 <= answer < 26 else str(answer).strip().strip("().[]").upper()
    if not re.fullmatch("[A-Z]", letter):
        raise ValueError(f"the reference answer must be one letter or a number from 0 to 25, it is {answer!r}")
    return letter
