"""The answer in a sentence: what follows its cue, without reasons behind it and without words before it, where nothing else is offered."""

from __future__ import annotations

import re

CUES = (
    r"(?<![a-z])(?:final|correct|right|best)?\s*(?:answer|choice|option)s?\**(?:\s+(?:is|are|would\s+be|must\s+be|should\s+be|will\s+be|has\s+to\s+be|=)(?![\w'’])"
    r"(?:\s+(?:therefore|thus|simply|just|then|clearly))?\s*[:：]?|[\"']?\s*\**[:：=](?!\s*[a-z]\s*=\s*\?))",
    r"\#\#\#\#(?!\#)",
    r"\b(?:I|we|they)\s+(?:(?:would|will|must|should)\s+)?(?:choose|pick|select)(?=\s)",
    r"【(?:答案|答)】",
    r"(?:正确|最终|标准|本题|最后)*的?(?:答案|选项|结果)(?:应该|应|就)?(?:是|为|為|選|选)?\s*[:：]?",
    r"(?<!不)(?:故|应|應|所以|因此|综上|答案)?(?:本题|该)?(?<!不)(?:选择|選擇|选|選)\s*[:：]?",
    r"(?:^|(?<=[\n。，,;；.]))\s*答\s*[:：]",
    r"(?:最終的?な?|正しい|正)?(?:答え?|解答|正解)(?:は|[:：])",
    r"(?:정답|답)(?:은|[:：])",
    r"(?:r[ée]ponse(?:\s+(?:finale|correcte))?|respuesta(?:\s+(?:final|correcta))?|risposta(?:\s+corretta)?|resposta(?:\s+(?:final|correta))?|Antwort|L[öo]sung|Ergebnis"
    r"|soluci[óo]n|ответ)(?:\s+(?:est|es|è|é|ist|lautet|sera|ser[áa])(?!\w)|\s*\**[:：])\s*[:：]?",
)
CUE = re.compile("|".join(f"(?:{cue})" for cue in CUES), re.IGNORECASE | re.MULTILINE)
WEAK_CUE = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|makes?|get|gets|obtain|total|have|has|therefore|thus|so|hence|cost|costs|spent|left|earn|earned|est|es|ist"
    r"|vale)\b(?!['’])\s*[:：,]?|\b[Ii]t['’]s\b|等于|等於|[是为得有共]|所以|因此|[:：∴]|(?:^|(?<=[\s,]))=>)",
    re.IGNORECASE,
)
IS_RIGHT = re.compile(
    r"(?P<given>\S(?:.{0,200}\S)?)\s+is\s+(?:(?:the|our|my)\s+)?(?:(?:final|correct|right)(?:\s+(?:answer|choice|option))?|answer|choice)[\s.!*]*",
    re.IGNORECASE,
)
IS_RIGHT_IN_CHINESE = re.compile(r"(?P<given>(?:选项|選項)?\s*[A-Z])\s*(?:是|为)?正确的?[。.]?")
END_OF_SENTENCE = re.compile(
    r"(?<![\s({*$][A-Z])(?<![A-Z]\.[A-Z])(?<!^[A-Z])[.!](?:[*\"')\]]*)(?=\s|\Z)|[。！]|(?<=[A-Z])\.(?=\s+(?:Option|Choice|Statement|Answer)s?\b)"
)
REASON = re.compile(r"[\s,，;(](?:because|since|因为|porque|parce\s+que|weil)\b.*", re.IGNORECASE | re.DOTALL)
REMARK = re.compile(r"[\s,，;(](?:due\s+to|which|where|given\s+that|so\s+that|(?<=,\s)(?:for|not))\b.*", re.IGNORECASE | re.DOTALL)
LEAD_IN = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then)\b,?\s+|(?:[aA]n?\s+(?=[a-z]{2})|I\s+(?=think|believe|guess|would|will|choose|pick))"
    r"|(?:that|it|this|there|he|she|they|we|you|the|our|capital|city|country|value|result|total|number|amount|cost|price|"
    r"distance|area|volume|length|probability|solution|answer|author|year|name|word|final|correct|choice|option|simply|exactly|of|to|is|are|was|"
    r"were|be|equals?|think|believe|guess|choose|pick|must|would|should|will|la|le|el|die|das|der)\b(?:\s*:)?\s+|[∴=]\s*|[一共总有是为得到选]+\s*)+",
    re.IGNORECASE,
)
COPULA = re.compile(r"(?:です|である|だ|となります|になります|となる|になる|입니다|이다|です。)[。.]?\Z")
NEGATION = re.compile(
    r"\b(?:not|never|cannot|nobody|none|nicht|kein|pas|nunca|wrong|incorrect|doubt)\b|n['’]t\b|\bno\s+(?:es|son)\b"
    r"|ない|ありません|不是|不等|不选|不可能|아니|아닙|아님|가 아",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:between|either|or|maybe|perhaps|possibly|might|could|approximately|about|around|roughly|nearly|almost|than|at\s+(?:least|most)|near|exceeds?|above|below|beyond|under|over|bound|limit|options?|choices)\b|[约約或~≈]|大概|差不多|至少|至多|以上|以下|左右|倍|未満|이상|이하|미만|보다|정도",
    re.IGNORECASE,
)
CORRECTION = re.compile(r"[.!,;\n]\s*(?:\W*)(?:wait|actually|hmm|no,|correction|oops|sorry)\b", re.IGNORECASE)
QUESTION = re.compile(r"[\s$.)*\]\"'\\]*[?？]")
CANDIDATE = re.compile(r"\d|(?<![A-Za-z])[A-HJ-Z](?![A-Za-z])|[½⅓¼¾]|\\(?:pi|sqrt|frac)")
BOLD = re.compile(r"\*\*(?=\S)([^*\n]{1,200}?)(?<=\S)\*\*")
IN_MATHEMATICS = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
ONE_NUMBER = re.compile(r"[-−]?[$€£¥]?(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?%?(?![\w,./*^+=-]*\d)")
EQUATION = re.compile(
    r"(?:[:,]\s*|[a-z]\s+)((?:-?\d+(?:\.\d+)?\s*[-+*/×÷]\s*){1,20}-?\d+(?:\.\d+)?\s*=\s*-?\d+(?:[.,]\d+)*)\s*[.!]?\s*\Z"
)  # add them: 4 + 2 = 6
YES_OR_NO = re.compile(r"(yes|no|true|false)\s*[,.;:]", re.IGNORECASE)


def list_readings(given: str, with_cue: bool) -> list[str]:
    """The readings of a text that holds an answer: as it stands, without reasons behind it and words before it, and the answer inside.

    with_cue: the text is what follows a cue, or a tag; then nothing else in it may be a candidate.
    """
    whole = given.strip()
    cut = COPULA.sub("", cut_reasons(whole))
    readings = [whole, cut, LEAD_IN.sub("", cut, count=1).strip()]
    for inside in find_inside(cut, with_cue):
        readings += [inside, LEAD_IN.sub("", cut_reasons(inside), count=1).strip()]
    if (answer := YES_OR_NO.match(whole)) and len(re.findall(r"\b(?:yes|no|true|false)\b", whole, re.IGNORECASE)) == 1:
        readings.append(answer[1])
    return list(dict.fromkeys(reading for reading in readings if reading))


def cut_reasons(given: str) -> str:
    """The answer without a tail that gives reasons (because 2 is even), or a remark without a second candidate (which is prime)."""
    given = given.strip()
    if remark := REMARK.search(given):
        letter_denied = re.fullmatch(r"[\s,]*(?:not|for)\b(?!.*\bbut\b).*", remark[0], re.DOTALL) and not re.search(r"\d", remark[0])
        if letter_denied or not CANDIDATE.search(remark[0]):
            given = given[: remark.start()]
    return REASON.sub("", given).strip()


def find_cued(text: str) -> str | None:
    """What follows the last cue of a text; "" where that is denied or asked, None without a cue."""
    cues = list(CUE.finditer(text))
    if not cues:
        return None
    start = cues[-1].start()
    before = text[:start].rpartition("\n")[2]
    ends = [match.end() for match in END_OF_SENTENCE.finditer(before)]
    if CORRECTION.search(text[cues[-1].end() :]) or NEGATION.search(before[ends[-1] if ends else 0 :] + " " + cues[-1][0]):
        return ""
    return _read_after(text, cues[-1].end())


def _read_after(text: str, start: int) -> str:
    """What follows a cue: the rest of its sentence, else the next line. Empty where a question mark follows."""
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


def find_inside(text: str, with_cue: bool) -> list[str]:
    """The answer in a sentence: before "is the answer"; without a cue also what is bold, alone in mathematics, after the last verb, or its
    only number. Nothing in doubt."""
    if QUESTION.search(text) or NEGATION.search(text):
        return []
    for pattern in (IS_RIGHT, IS_RIGHT_IN_CHINESE):
        if reverse := pattern.fullmatch(text.strip()):
            return [reverse["given"]]
    ends = [match.end() for match in END_OF_SENTENCE.finditer(text) if text[match.end() :].strip()]
    sentence = text[ends[-1] :] if ends else text
    if HEDGE.search(sentence):
        return []
    if with_cue:
        found = _find_marked(sentence)[:1]
        return [one for one in found if not re.search(r"\w", LEAD_IN.sub("", sentence.replace(one, " ", 1).strip(" *$") + " "))]
    return [one.strip().rstrip(".:") for one in _find_marked(sentence)]


def _find_marked(sentence: str) -> list[str]:
    bold = BOLD.findall(sentence)
    if len(bold) == 1:
        return [str(bold[0])]
    formulas = ["".join(groups) for groups in IN_MATHEMATICS.findall(sentence)]
    verbs = [verb for verb in WEAK_CUE.finditer(sentence) if verb[0] not in ":：" or not re.search(r"\d", sentence[: verb.start()])]
    if len(formulas) == 1 and (not verbs or not re.search(r"\d", IN_MATHEMATICS.sub("", sentence))):
        return [formulas[0]]
    numbers = [str(number) for number in ONE_NUMBER.findall(sentence)]
    alone = numbers if len(numbers) == 1 and len(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", sentence)) == 1 else []
    if equation := EQUATION.search(sentence):
        return [equation[1]]
    if not verbs or re.search(r"\d", sentence[verbs[0].end() : verbs[-1].start()]):
        return alone
    return [sentence[verbs[-1].end() :], *alone]
