"""Answers that are the letter of a choice, with or without the text of its option, and answers in labelled parts: (a) 3, (b) 5."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from rlkit.grading.decoration import TEXT, strip_decoration

CHOICES = "ABCDEFGHIJ"
# What follows a letter without being the text of its option: (A)^2, (A) \cup (B), (A), (C).
NO_OPTION = r"[\^_=/!'|&∪∩,;]|\*(?!\*)|[+-](?!\d)|\\(?:cup|cap|times|cdot|in|to|subset)\b|(?:and|or)\b|[或和]"
ABBREVIATED = re.compile(r"[A-Z]\.(?:\s*[a-z]{3,}\.?\Z|[A-Za-z])")  # E. coli, B.Sc.
INITIAL = re.compile(r"[F-J]\. [A-Z][a-z]+")  # G. Cantor
NO_OPTION_TEXT = re.compile(r"\b(?:[Ww]rong|[Ii]ncorrect|[Nn]ot|[Dd]on['’]t)\b|[A-Z]\s*(?:或|or\b)", re.DOTALL)
NO_LETTERS = frozenset("i")  # of a choice in lower case: the imaginary unit
LABEL = re.compile(r"(?<![\w\\)}])(?:\(([A-Ja-j]|[IVXivx]{2,4})\)[.:]?|(?<!\()([A-Ja-j]|[IVXivx]{2,4})(?:\)|[.:](?=\s)))\s*")
LABELS = tuple("abcdefghij"), ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
END_OF_PART = re.compile(r"(?:\s|[,;.]|\\\\|\\q?quad|\band\b)+\Z")
IsRight = Callable[[str, str], bool]


@cache
def _compile_choice(letters: str) -> re.Pattern[str]:
    letter = f"[{letters}{letters.lower()}]"
    return re.compile(
        rf"""(?:(?:(?:option|choice|answer|statement)\s*:?\s*(?=[(\[]?{letter}\b))|[选選]项?\s*)?
          [(\[]?(?P<letter>{letter})(?:[)\]]?[.:)]?
          | (?: [)\]][.:]?(?![+-])\s*(?!{NO_OPTION})                                           # (B) 12
              | [)\]]?\.\s*(?![a-zA-Z]\.\s*\S|{NO_OPTION})                                     # B. 12; not J. K. Rowling
              | [)\]]?:(?:\s+(?![a-zA-Z]\s*[:=]|{NO_OPTION})|(?=[^\W\d_]{{2}}[^:=]*\Z)))       # B: 12; not a:b=2:3
            (?P<option>\S.*))""",
        re.DOTALL | re.VERBOSE | re.IGNORECASE,
    )


def read_choice(answer: str, letters: str = CHOICES) -> tuple[str, str] | None:
    """The letter of a choice, and the text of its option or an empty text; None where the whole answer is not a choice."""
    raw, answer = answer, TEXT.sub(r"\1", strip_decoration(answer)).strip()
    if re.search(r"\\mathbb|[ℂ]", raw):
        return None
    if re.fullmatch(rf"A:\s*\(?[{letters}]\)?\.?", answer):  # a dialogue of Q: and A:
        answer = answer[2:].strip()
    match = None if split_parts(answer) else _compile_choice(letters).fullmatch(answer)
    if match is None or match["letter"] in NO_LETTERS or NO_OPTION_TEXT.search(match["option"] or ""):
        return None
    letter, option = match["letter"].upper(), match["option"] or ""
    is_list = re.search(rf"(?<!\w)\(?{chr(ord(letter) + 1)}[).:]\s", option)  # B) 1 C) 2
    return None if is_list else (letter, option)


def read_reference_choice(reference: str) -> tuple[str, str] | None:
    """The same for a reference, in which E. coli is a name, and e and a are symbols; in an answer it may be option E with its text."""
    text = TEXT.sub(r"\1", strip_decoration(reference)).strip()
    if ABBREVIATED.match(text) or INITIAL.fullmatch(text) or re.fullmatch("[a-j]", text):
        return None
    return read_choice(reference)


def match_choices(reference: str, given: str) -> bool:
    """Whether an answer has the letters of a reference such as ABD, joined or one by one."""
    if not re.fullmatch(r"[A-J]{2,}", reference.strip()) or list(reference.strip()) != sorted(set(reference.strip())):
        return False
    letters = re.fullmatch(r"([A-J])((?:(?:\s*[,;和及]\s*|\s*(?:,\s*)?and\s+|\s+)[A-J])+)", TEXT.sub(r"\1", strip_decoration(given)))
    return letters is not None and re.findall("[A-J]", letters[0]) == list(reference.strip())


def match_choice(choice: tuple[str, str], given: str, is_right: IsRight) -> bool:
    """Whether an answer is the choice: its letter alone, or with the text of its option."""
    found = read_choice(given)
    if found is None:
        return False
    letter, option = found
    return letter == choice[0] and (not option or not choice[1] or is_right(choice[1], option))


def split_parts(answer: str) -> tuple[str, ...] | None:
    """The texts of an answer in parts, such as (a) 3, (b) 5; None for other answers."""
    answer = re.sub(r"\\text\s*\{\s*(\(?\w{1,4}[).:])\s*\}", r"\1", answer).strip().removeprefix("$")
    labels = list(LABEL.finditer(answer))
    names = tuple((label[1] or label[2]).lower() for label in labels)
    if len(labels) < 2 or labels[0].start() or names not in (LABELS[0][: len(names)], LABELS[1][: len(names)]):
        return None
    ends = [*(label.start() for label in labels[1:]), len(answer)]
    texts = tuple(END_OF_PART.sub("", answer[label.end() : end]) for label, end in zip(labels, ends, strict=True))
    return texts if all(texts) else None


def match_parts(reference: tuple[str, ...], given: tuple[str, ...] | None, is_right: IsRight) -> bool:
    """Whether each part is right."""
    return given is not None and len(given) == len(reference) and all(map(is_right, reference, given))
