r"""Finds the final answer in a completion: a box, <answer>, a cue such as "the answer is", a bold or last line; nothing else.

What follows the last </think> is searched. Every function takes time linear in the length of any text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

MAX_ANSWER_CHARACTERS = 2000  # no answer is longer
SEARCHED_CHARACTERS = 2000  # at the end of the text, where there is neither box nor tag

BRACES = re.compile(r"\\\\|\\[{}]|\\f?box(?:ed)?\s*\{|[{}]")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&.、，；]|\\[()\[\],;: ]|\\q?quad|\\text\s*\{\s*(?:and|or)?\s*\}|\b(?:and|or|y|et|und|oder)\b|[和或与及と])*"
)
LONGEST_BETWEEN = 40
CUES = (
    r"(?:final|correct|right|best)?\s*(?:answer|choice|option)s?\**(?:\s+(?:is|are|would\s+be|must\s+be|should\s+be|will\s+be|has\s+to\s+be|=)(?![\w'’])"
    r"(?:\s+(?:therefore|thus|simply|just|then|clearly))?\s*[:：]?|[\"']?\s*\**[:：=](?!\s*[a-z]\s*=\s*\?))",
    r"\#\#\#\#(?!\#)",
    r"\b(?:I|we|they)\s+(?:(?:would|will|must|should)\s+)?(?:choose|pick|select)(?=\s)",
    r"(?:正确|最终|标准|本题|最后)*的?(?:答案|选项|结果)(?:应该|应|就)?(?:是|为|選|选)?\s*[:：]?",
    r"(?:故|应|應|所以|因此|综上|答案)?(?:本题|该)?(?:选择|選擇|选|選)\s*[:：]?",
    r"(?:^|(?<=[\n。，,;；.]))\s*答\s*[:：]",
    r"(?:最終的?な?|正しい|正)?(?:答え?|解答|正解)(?:は|[:：])",
    r"(?:정답|답)(?:은|[:：])",
    r"(?:r[ée]ponse(?:\s+(?:finale|correcte))?|respuesta(?:\s+(?:final|correcta))?|risposta|resposta|Antwort|L[öo]sung|Ergebnis|soluci[óo]n|ответ)"
    r"(?:\s+(?:est|es|è|é|ist|lautet|sera|ser[áa])(?!\w)|\s*\**[:：])\s*[:：]?",
)
CUE = re.compile("|".join(f"(?:{cue})" for cue in CUES), re.IGNORECASE | re.MULTILINE)
WEAK_CUE = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|makes?|get|gets|obtain|total|have|has|therefore|thus|so|hence|cost|costs|spent|left|est|es|ist|vale)\b(?!['’])"
    r"\s*[:：,]?|[是为得有共]|所以|因此|[:：]|(?:^|(?<=[\s,]))=>)",
    re.IGNORECASE,
)
IS_THE_ANSWER = re.compile(
    r"(?P<given>.{1,200}?)\s+is\s+(?:the|our|my)\s+(?:final\s+|correct\s+|right\s+)?(?:answer|choice|option)\W*\Z", re.IGNORECASE
)
END_OF_SENTENCE = re.compile(r"(?<![\s({*$][A-Z])(?<![A-Z]\.[A-Z])(?<!^[A-Z])[.!](?:[*\"')\]]*)(?=\s|\Z)|[。！]")
TAIL = re.compile(
    r"(?<![\s,，;(])[\s,，;(]+(?:because|since|as|due\s+to|which|where|given\s+that|so\s+that|因为|porque|parce\s+que|weil|(?<=,\s)(?:for|not))\b.*",
    re.IGNORECASE | re.DOTALL,
)
LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then)\b,?\s+|(?:[aA]n?\s+(?=[a-z]{2})|I\s+(?=think|believe|guess|would|will|choose|pick))"
    r"|(?:that|it|this|there|he|she|they|we|you|the|our|capital|city|country|value|result|sum|product|difference|total|number|amount|cost|price|"
    r"distance|area|volume|length|probability|solution|answer|author|year|name|word|final|correct|choice|option|simply|exactly|of|to|is|are|was|"
    r"were|be|equals?|think|believe|guess|choose|pick|must|would|should|will)\b(?:\s*:)?\s+|[一共总有是为得到约选]+\s*)+",
    re.IGNORECASE,
)
COPULA = re.compile(r"(?:です|である|だ|となります|になります|입니다|이다|です。)[。.]?\Z")
NEGATION = re.compile(
    r"\b(?:not|never|cannot|nicht|kein|pas)\b|n['’]t\b|\bno\s+(?:es|son)\b|ない|ありません|不是|不等|不可能|아니", re.IGNORECASE
)
QUESTION = re.compile(r"[\s$.)*\]\"'\\]*[?？]")
BOLD = re.compile(r"\*\*(?=\S)([^*\n]{1,200}?)(?<=\S)\*\*")
IN_MATHEMATICS = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A final answer: its readings, the strictest first, of which one is compared after the other; where it was found."""

    texts: tuple[str, ...]
    place: str  # box, tag, cue, line


def find_answer(completion: str) -> Answer | None:
    """The final answer of a completion; None where it gives none, leaves its box open or puts a question mark behind it."""
    before, ending, after = completion.rpartition("</think>")
    text = after if ending and after.strip() else before or after
    if found := _find_boxes(text):
        return found if found.texts else None
    if (tagged := _find_tagged(text)) is not None:
        fits = tagged.strip() and len(tagged) <= MAX_ANSWER_CHARACTERS
        return Answer(tuple(_trim(tagged, _find_in_sentence(tagged))), "tag") if fits else None
    return _find_in_prose(text[-SEARCHED_CHARACTERS:])


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
        return Answer((), "box")
    if not boxes:
        return None
    if QUESTION.match(text, boxes[-1][2] + 1):
        return Answer((), "box")
    content = read_boxes(text)[0]
    assert content is not None
    return Answer((content,) if len(content) <= MAX_ANSWER_CHARACTERS else (), "box")


def _is_separator(between: str) -> bool:
    return len(between) <= LONGEST_BETWEEN and bool(BETWEEN_BOXES.fullmatch(between))


def _find_tagged(text: str) -> str | None:
    """The content of the last <answer>...</answer>, or what follows the last <answer>: where the end is a stop string it is left out."""
    start = text.rfind("<answer>")
    return text[start + len("<answer>") :].partition("</answer>")[0] if start >= 0 else None


def _find_in_prose(text: str) -> Answer | None:
    if (value := _read_json(text)) is not None:
        return Answer((value,), "cue")
    cues = list(CUE.finditer(text))
    if cues:
        given = _read_after(text, cues[-1].end())
        if given is not None and not given.strip(" *.:$"):
            return None
        if given is not None:
            return Answer(tuple(_trim(given, _find_in_sentence(given))), "cue")
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines or QUESTION.search(lines[-1]):
        return None
    if len(lines) > 1 and all(re.fullmatch(r"[-\d.,/ ]{1,20}", line) for line in lines[-2:]):
        return None  # candidates, one in a line
    last = " ".join(lines[-3:]) if lines[-1].strip() in ("$$", r"\]") else lines[-1]
    return Answer(tuple(_trim(last.strip(), _find_in_sentence(last))), "line")


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


def _read_after(text: str, start: int) -> str | None:
    """What follows a cue: the rest of its sentence, else the next line. None where a question mark or nothing follows."""
    rest = text[start:]
    line, _, following = rest.partition("\n")
    if not line.strip(" *:：$\\[") and following.strip():
        block = re.match(r"\s*(?:\$\$|\\\[)\s*(.*?)\s*(?:\$\$|\\\])", rest.lstrip(" *:："), re.DOTALL)
        line = block[1] if block else following.strip().splitlines()[0]
    if QUESTION.search(line):
        return ""
    sentence = END_OF_SENTENCE.search(line)
    return _balance_bold((line[: sentence.start()] if sentence else line).strip())


def _balance_bold(text: str) -> str:
    """The text without asterisks whose partner stands before or behind it: of **Answer:** 5 and **Answer: 5**."""
    if text.count("**") % 2 == 0:
        return text
    return text.removeprefix("**").strip() if text.startswith("**") else text.removesuffix("**").strip()


def _find_in_sentence(text: str) -> str | None:
    """The answer in a sentence without a strong cue: what is bold, alone in mathematics, or follows the last verb."""
    if QUESTION.search(text) or NEGATION.search(TAIL.sub("", text)):
        return None
    if cues := list(CUE.finditer(text)):
        return _read_after(text, cues[-1].end())
    if reverse := IS_THE_ANSWER.search(text):
        return reverse["given"]
    bold = BOLD.findall(text)
    if len(bold) == 1:
        return str(bold[0]).rstrip(".:")
    sentence = TAIL.sub("", text.strip())
    ends = [match.end() for match in END_OF_SENTENCE.finditer(sentence) if sentence[match.end() :].strip()]
    sentence = sentence[ends[-1] :] if ends else sentence
    formulas = ["".join(groups) for groups in IN_MATHEMATICS.findall(sentence)]
    verbs = list(WEAK_CUE.finditer(sentence))
    if len(formulas) == 1 and (not verbs or not re.search(r"\d", IN_MATHEMATICS.sub("", sentence))):
        return formulas[0]
    return sentence[verbs[-1].end() :] if verbs else None


def cut_reasons(given: str) -> str:
    """The answer without a tail that gives reasons: because 2 is even, not B."""
    return TAIL.sub("", given.strip()).strip()


def _trim(given: str, inside: str | None) -> list[str]:
    """The readings of an answer: as it stands, without a tail that gives reasons, without a lead-in; and what was found inside it."""
    readings = [given.strip()]
    readings.append(COPULA.sub("", cut_reasons(given)))
    readings.append(LEAD_IN.sub("", readings[1], count=1).strip())
    if inside is not None:
        readings += [inside.strip(), LEAD_IN.sub("", cut_reasons(inside), count=1).strip()]
    return list(dict.fromkeys(reading for reading in readings if reading))
