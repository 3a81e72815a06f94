r"""Finds the final answer in a completion: a box, <answer>, a cue such as "the answer is", a bold or last line; nothing else.

What follows the last </think> is searched. Every function takes time linear in the length of any text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from rlkit.grading.sentences import NEGATION, QUESTION, cut_reasons, find_cued, list_readings

MAX_ANSWER_CHARACTERS = 2000  # no answer is longer
SEARCHED_CHARACTERS = 2000  # at the end of the text, where there is neither box nor tag

BRACES = re.compile(r"\\\\|\\[{}]|\\f?box(?:ed)?\s*\{|[{}]")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&.、，；]|\\[()\[\],;: ]|\\q?quad|\\text\s*\{\s*(?:and|or)?\s*\}|\b(?:and|or|y|et|und|oder)\b|[和或与及と])*"
)
LONGEST_BETWEEN = 40
DENIED = re.compile(r"(?:~~|\\(?:cancel|xcancel|bcancel|sout|st|not)\b\s*\{?|\b(?:not|isn['’]t|never)\s*:?)[\s$({]*\Z", re.IGNORECASE)
SPECIAL = re.compile(r"<\|(?!begin_of_box|end_of_box)[\w-]{1,40}\|>\Z")  # <|eot_id|>
TAG = re.compile(r"<(final_)?answer>", re.IGNORECASE)
EXPLANATION = re.compile(r"\n\s*\n\W*(?:explanation|reason(?:ing)?|justification|解析|解释|说明)\W", re.IGNORECASE)
BARE = re.compile(r"[-\d.,/ ]{1,20}|\*\*[A-Z]\*\*.*|\W{0,4}[A-Z]\W{0,4}|\W{0,4}[A-Z][.:)].*|\w{1,12}\W{0,3}")


@dataclass(frozen=True)
class Answer:
    """A final answer: its readings, the strictest first, of which one is compared after the other."""

    texts: tuple[str, ...]


def find_answer(completion: str) -> Answer | None:
    """The final answer of a completion; None where it gives none, leaves its box open, denies it or puts a question mark behind it."""
    before, ending, after = _strip_special(completion).rpartition("</think>")
    text = after if ending and after.strip() else before or after
    if "<|begin_of_box|>" in text:
        text = text.replace("<|begin_of_box|>", r"\boxed{").replace("<|end_of_box|>", "}")
    if found := _find_boxes(text):
        return found if found.texts else None
    if (tagged := _find_tagged(text)) is not None:
        tagged = squeeze_spaces(tagged)
        fits = tagged.strip() and len(tagged) <= MAX_ANSWER_CHARACTERS
        return Answer(tuple(list_readings(find_cued(tagged) or tagged, with_cue=True))) if fits else None
    return _find_in_prose(squeeze_spaces(text[-SEARCHED_CHARACTERS:]))


def _strip_special(text: str) -> str:
    """The text without special tokens at its end."""
    text = text.rstrip()
    while text.endswith("|>") and (special := SPECIAL.search(text, max(0, len(text) - 50))):
        text = text[: special.start()].rstrip()
    return text


def read_boxes(text: str) -> tuple[str | None, bool]:
    r"""The last \boxed{...} or \fbox{...} of a text, with those that belong to it as a list; and whether there are others before."""
    boxes = _list_boxes(text)[0]
    if not boxes:
        return None, False
    first = len(boxes) - 1
    while first and _is_separator(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    contents = [text[start:end].strip() for _, start, end in boxes]
    last = contents[first:]
    return last[0] if len(set(last)) == 1 else " ; ".join(last), not set(contents[:first]) <= set(last)


def _list_boxes(text: str) -> tuple[list[tuple[int, int, int]], int | None]:
    """Of outer boxes: where the command begins, where the content begins and ends. And where a box that is never closed begins."""
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content begin; None for other braces
    boxes: list[tuple[int, int, int]] = []
    for token in BRACES.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                while boxes and boxes[-1][0] > start[0]:
                    boxes.pop()  # it was inside this one
                boxes.append((*start, token.start()))
        elif token[0][-1] == "{" and len(token[0]) != 2:  # of length 2: an escaped brace, which opens no group
            open_braces.append((token.start(), token.end()) if len(token[0]) > 1 else None)
    unclosed = [start[0] for start in open_braces if start is not None]
    return boxes, max(unclosed) if unclosed else None


def _find_boxes(text: str) -> Answer | None:
    """The last box, with those before it that are separated from it by nothing but separators. Without texts: the last box stays open."""
    boxes, unclosed = _list_boxes(text)
    if unclosed is not None and (not boxes or unclosed > boxes[-1][0]):
        return Answer(())
    if not boxes:
        return None
    if QUESTION.match(text, boxes[-1][2] + 1) or DENIED.search(text[max(0, boxes[-1][0] - 40) : boxes[-1][0]]):
        return Answer(())
    content = read_boxes(text)[0]
    assert content is not None
    return Answer((content,) if len(content) <= MAX_ANSWER_CHARACTERS else ())


def _is_separator(between: str) -> bool:
    return len(between) <= LONGEST_BETWEEN and bool(BETWEEN_BOXES.fullmatch(between))


def _find_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>, or what follows the last <answer>: where the end is a stop string it is left out."""
    tags = list(TAG.finditer(text))
    if not tags:
        return None
    return re.split(r"</(?:final_)?answer>", text[tags[-1].end() :], maxsplit=1, flags=re.IGNORECASE)[0]


def _find_in_prose(text: str) -> Answer | None:
    if (value := _read_json(text)) is not None:
        return Answer((value,))
    text = EXPLANATION.split(text, maxsplit=1)[0]
    if (given := find_cued(text)) is not None:
        return Answer(tuple(list_readings(given, with_cue=True))) if given.strip(" *.:$") else None
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or QUESTION.search(lines[-1]) or NEGATION.search(cut_reasons(lines[-1])):
        return None
    if len(lines) > 1 and all(BARE.fullmatch(line) for line in lines[-2:]):
        return None  # candidates, one in a line
    last = " ".join(lines[-3:]) if lines[-1] in ("$$", r"\]") else lines[-1]
    return Answer(tuple(list_readings(last, with_cue=False)))


def squeeze_spaces(text: str) -> str:
    """The text with one space or one line break for each run of them."""
    return re.sub(r"\s{2,}", lambda run: "\n\n" if run[0].count("\n") > 1 else "\n" if "\n" in run[0] else " ", text)


def _read_json(text: str) -> str | None:
    """The answer of a completion that ends in a JSON object with one."""
    start, end = text.rfind("{"), text.rfind("}")
    if start < 0 or end < start or '"' not in text[start:end] or text[end + 1 :].strip(" \n`"):
        return None
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    answers = [value for key, value in found.items() if re.sub(r"[\s_]", "", key).casefold() in ("answer", "finalanswer")]
    return str(answers[0]) if answers and isinstance(answers[0], (str, int, float)) else None
