r"""Reads an answer: a quantity, a set, a tuple, an interval, an equation, a matrix, cases, a ratio; or else a text.

An answer is read as a whole. What is not understood to its last character is a text, and equals nothing but the same text.
"""

from __future__ import annotations

import re

from rlkit.grading.answer_kinds import Collection, Interval, Labelled, ParsedAnswer, Quantity, Restricted
from rlkit.grading.brackets import RELATION, closes_at_end, count_levels, list_relations, split_outside_brackets
from rlkit.grading.decoration import TEXT, normalise_text, strip_decoration
from rlkit.grading.quantities import MODULUS, read_quantity

MAX_LEVELS = 20  # of brackets in brackets
SPACE_OF_THOUSANDS = r"(?:\{,\}|,?\\[,!; ]| |_)"
GROUPED_DIGITS = re.compile(rf"(?<![\w.,])\d{{1,3}}(?:(?:,|{SPACE_OF_THOUSANDS})\d{{3}})+(?!\d|,\d|\s*/)")
GROUPED_IN_A_LIST = re.compile(rf"(?<![\w.])\d{{1,3}}(?:{SPACE_OF_THOUSANDS}\d{{3}})+(?!\d)")
ONLY_GROUPED = re.compile(r"\d{1,3}(?:,[1-9]\d{2})+")  # 100,200: a number, or two
BRACKETED_LIST = re.compile(r"(?:[(\[]|\\\{)[^()\[\]]*,")
SEPARATOR = re.compile(
    r"[,;]|\n|\\text\s*\{\s*,?\s*(?:and|or|和|或|与|及)\s*\}|(?<![\w\\])(?:and|or)(?![\w])|[或和与及]|\\(?:or|lor|vee)(?![a-zA-Z])"
)
OTHER_RELATION = re.compile(
    r"\\(?:approx|neq?|equiv|sim|simeq|cong|propto|to|rightarrow|Rightarrow|iff|parallel|perp|notin|subset|subseteq|ll|gg|mapsto|implies|not|doteq)"
    r"(?![a-zA-Z])|[≈~?]|!="
)
LESS, GREATER = ("<", "<=", "=<", r"\le", r"\leq", r"\leqslant", r"\lt"), (">", ">=", r"\ge", r"\geq", r"\geqslant", r"\gt")
STRICT = frozenset({"<", ">", r"\lt", r"\gt"})
ENVIRONMENT = re.compile(
    r"(?:[\[(]|\\\{)?\s*\\begin\{(cases|array|[pbvBV]?matrix|aligned|smallmatrix|gathered)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]]?",
    re.DOTALL,
)
DOMAIN = re.compile(
    r"[\s,;]*[(（]?\s*(?:\\text\s*\{\s*,?\s*(?:where|for|with|and|其中)?\s*\}|where|with|for|其中)?\s*\(?(?P<name>[a-zA-Z])\s*\\in\s*"
    r"(?:[A-Z]|\\mathbb\s*[A-Z]|\\text\{[^{}]*\})(?:\s*[\^_]\s*(?:\{[^{}]*\}|[+*\w]))?\s*[)）]?\s*\Z"
)
IF = re.compile(r"\\text\{\s*(?:if|when|for)\s*\}|^\s*(?:if|when|for)\b")
SET_BUILDER = re.compile(
    r"\s*(?P<name>[a-zA-Z])\s*(?:\\in\s*(?:R|\\mathbb\s*R))?\s*(?:\\mid|\\vert|\||:|\\colon)\s*(?P<condition>.*)", re.DOTALL
)
NAME = re.compile(
    r"""(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?'*|\\text\{[^{}]*\}|[^\W\d_]{2,}(?:\s[^\W\d_]+)*)(?:\s*\([^()=]*\)|\s*\\angle\s*[A-Z]+)?
      | \\(?:sin|cos|tan|cot|log|ln|lg)\s*(?:\\?[a-zA-Z]+|\([^()]*\))
      | [SPVCnN](?:_\{[^{}]*\}|\([^()]*\)) | \\angle\s*\w+ | \|[^|]+\| | \\[lr]vert.* | \\(?:max|min)
      | \\frac\s*\{\s*d\w*.*\}\s*\{\s*d\w.*\} | \\(?:overline|vec|hat|bar)\s*\{[^{}]*\}
      | \\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\s*:\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?)+ | \\frac\s*\{\s*[A-Z]{1,2}\s*\}\s*\{\s*[A-Z]{1,2}\s*\}
      | \(\s*[a-zA-Z](?:_\w)?(?:\s*,\s*[a-zA-Z](?:_\w)?)+\s*\) | [A-Z](?:\s*\\(?:cap|cup|setminus)\s*[A-Z])+""",
    re.VERBOSE,
)
BRACKETED_BASE = re.compile(r"\A\((\w+)\)_(?=\{?\d)")
COMPOUND = re.compile(r"(?:\s*\d+(?:\.\d+)?\s*(?:\\text\s*\{[^{}]*\}|[^\W\d_]+))")
ELLIPSIS = re.compile(r"\\[lc]?dots[a-z]?|\.{2,}")
UNION = re.compile(r"\\cup(?![a-zA-Z])")
CLOCK = re.compile(
    r"\d{1,2}:0\d(?::\d{2})?|\d{1,2}:\d{2}(?::\d{2})?\s*(?:\\text\s*\{)?\s*[aApP]\.?\s*[mM].*|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
)


def read_answer(answer: str, comma_separates: bool = False) -> ParsedAnswer:
    """Reads an answer. comma_separates: 100,200 are two numbers, not one."""
    if count_levels(answer) > MAX_LEVELS:
        return ParsedAnswer(normalise_text(answer))
    return _read(_join_thousands(BRACKETED_BASE.sub(r"\1_", strip_decoration(answer)), comma_separates))


def is_ambiguous(answer: str) -> bool:
    """Whether the commas of an answer may separate thousands or numbers."""
    return ONLY_GROUPED.fullmatch(strip_decoration(answer)) is not None


def _join_thousands(text: str, comma_separates: bool) -> str:
    grouped = GROUPED_IN_A_LIST if comma_separates or BRACKETED_LIST.search(text) else GROUPED_DIGITS
    return grouped.sub(lambda match: re.sub(r"\D", "", match[0]), text)


def _read(text: str) -> ParsedAnswer:
    text = text.strip()
    whole = normalise_text(text)
    for reader in (_read_environment, _read_list, _read_relation, _read_union, _read_bracketed, _read_ratio, read_quantity):
        if (found := reader(text, whole)) is not None:
            return found
    return ParsedAnswer(whole)


def _read_environment(text: str, whole: str) -> ParsedAnswer | None:
    match = ENVIRONMENT.fullmatch(text)
    if match is None:
        if (
            r"\begin{" in text
            and (labelled := re.match(r"([^=]{1,40})=\s*(?=\\begin\{)", text))
            and ENVIRONMENT.fullmatch(text[labelled.end() :])
        ):
            return Labelled(whole, normalise_text(labelled[1]), _read(text[labelled.end() :]), True)
        return None if r"\begin{" not in text else ParsedAnswer(whole)
    rows = [row for row in re.split(r"\\\\(?:\[\d+(?:pt|em|ex)\])?", match[2]) if row.strip()]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    if match[1] in ("cases", "aligned", "gathered") or text.startswith("\\{"):
        return _read_cases(cells, whole)
    if len(cells) == 1 and len(cells[0]) == 1:
        return _read(cells[0][0])
    if match[1] in ("vmatrix", "Vmatrix"):
        return ParsedAnswer(whole)  # a determinant, and a norm
    return Collection(whole, "matrix", tuple(Collection("", "tuple", tuple(map(_read, row))) for row in cells))


def _read_cases(cells: list[list[str]], whole: str) -> ParsedAnswer:
    """Values with their conditions, or equations that hold together."""
    rows = [[cell.rstrip(" ,;") for cell in row if cell.strip()] for row in cells]
    if all(len(row) == 1 for row in rows):
        parts = [split_outside_brackets(row[0], SEPARATOR) for row in rows]
        if all(len(part) == 2 and RELATION.search(part[1]) and not RELATION.search(part[0]) for part in parts):
            rows = parts
    if all(len(row) == 1 for row in rows):
        return Collection(whole, "list", tuple(_read(row[0]) for row in rows))
    if all(len(row) == 2 for row in rows):
        pairs = ((_read(value), _read(IF.sub("", condition))) for value, condition in rows)
        return Collection(whole, "cases", tuple(Collection("", "tuple", pair) for pair in pairs))
    return ParsedAnswer(whole)


def _read_list(text: str, whole: str) -> ParsedAnswer | None:
    domain = DOMAIN.search(text)
    if domain and (rest := text[: domain.start()].strip(" ,;(")):
        value, limits = _read(rest), normalise_text(domain[0].strip(" ,;()"))
        return ParsedAnswer(whole) if isinstance(value, Interval) else Restricted(whole, value, limits)
    if len(compound := COMPOUND.findall(text)) > 1 and "".join(compound) == text:  # 3 hours 20 minutes
        return Collection(whole, "compound", tuple(_read(re.sub(r"\b(?:and)\s*\}", "}", part)) for part in compound))
    rows = split_outside_brackets(text, re.compile(";"))
    if len(rows) > 1 and len(split_outside_brackets(rows[0], re.compile(","))) > 1:  # p = 5, q = 2; p = 7, q = 2
        return Collection(whole, "list", tuple(map(_read, rows))) if all(rows) else ParsedAnswer(whole)
    parts = split_outside_brackets(text, SEPARATOR)
    parts = [part for number, part in enumerate(parts) if part or not 0 < number < len(parts) - 1] if "," in text else parts  # ", and"
    if len(parts) < 2:
        return None
    if not all(parts) or any(ELLIPSIS.fullmatch(part) for part in parts):
        return ParsedAnswer(whole)
    items = tuple(map(_read, parts))
    if _is_contradictory(text, items):
        return ParsedAnswer(whole)
    first = split_outside_brackets(parts[0], RELATION)
    if len(first) == 2 and not any(RELATION.search(part) for part in parts[1:]) and is_name(first[0]) and "=" in parts[0]:
        items = tuple(map(_read, [first[1], *parts[1:]]))
        return Labelled(whole, normalise_text(first[0]), Collection("", "list", items), True)
    return Collection(whole, "list", items)


def _is_contradictory(text: str, items: tuple[ParsedAnswer, ...]) -> bool:
    """Whether the words between the items make no list of them: A or B as choices, x = 1 or y = 2, x < 1 and x > 3."""
    words = TEXT.sub(r" \1 ", text)
    if re.search(r"(?<![a-zA-Z])or(?![a-zA-Z])|或", words):
        lefts = {item.left for item in items if isinstance(item, Labelled)}
        return len(lefts) > 1 or len({item.text for item in items if re.fullmatch("[A-Z]", item.text)}) > 1
    return bool(re.search(r"(?<![a-zA-Z])and(?![a-zA-Z])|[且和]", words)) and any(
        isinstance(item, Interval) and item.name for item in items
    )


def _read_relation(text: str, whole: str) -> ParsedAnswer | None:
    if MODULUS.search(text):
        text = re.sub(r"\\equiv(?![a-zA-Z])", "=", text)
    if OTHER_RELATION.search(text) and len(split_outside_brackets(text, OTHER_RELATION)) > 1:
        return ParsedAnswer(whole)
    sides = split_outside_brackets(text, RELATION)
    if len(sides) < 2:
        return None
    signs = list_relations(text)
    if len(signs) != len(sides) - 1 or not all(sides):
        return ParsedAnswer(whole)
    if all(sign == "=" for sign in signs):
        return _read_equation(sides, whole)
    if signs == [r"\in"]:
        return Labelled(whole, normalise_text(sides[0]), _read(sides[1]), True)
    return _read_inequality(sides, signs, whole) or ParsedAnswer(whole)


def _read_equation(sides: list[str], whole: str) -> ParsedAnswer:
    left, right = sides[0], sides[-1]
    if len(sides) == 2 and not is_name(left) and is_name(right) and not re.search(r"[a-zA-Z]", left):
        left, right = right, left  # 5 = x
    return Labelled(
        whole, normalise_text(left), _read(right), is_name(left), tuple(sides[:-1]) if not is_name(left) else tuple(sides[1:-1])
    )


def is_name(side: str) -> bool:
    """Whether a left side is a name, which may be absent: x, f(x), S_n, dy/dx, A \\cap B, words."""
    return NAME.fullmatch(side.strip()) is not None and not re.search(r"\b(?:not|wrong|incorrect|false)\b", side, re.IGNORECASE)


def _read_inequality(sides: list[str], signs: list[str], whole: str) -> ParsedAnswer | None:
    """x > 1, 1 < x <= 2 and their like, of one variable between bounds without symbols."""
    if all(sign in GREATER for sign in signs):
        sides, signs = sides[::-1], signs[::-1]
    elif not all(sign in LESS for sign in signs):
        return None
    names = [number for number, side in enumerate(sides) if is_name(side) and normalise_text(side) not in (r"\infty", r"\pi", "e")]
    if len(names) != 1 or len(sides) > 3 or (len(sides) == 3 and names != [1]):
        return None
    strict = [sign in STRICT for sign in signs]
    low = _read(sides[names[0] - 1]) if names[0] else _read(r"-\infty")
    high = _read(sides[names[0] + 1]) if names[0] + 1 < len(sides) else _read(r"\infty")
    closed = (bool(names[0]) and not strict[0], names[0] + 1 < len(sides) and not strict[-1])
    return Interval(whole, (low, high), closed, normalise_text(sides[names[0]]))


def _read_union(text: str, whole: str) -> ParsedAnswer | None:
    parts = split_outside_brackets(text, UNION)
    if len(parts) < 2:
        return None
    return Collection(whole, "union", tuple(map(_read, parts))) if all(parts) else ParsedAnswer(whole)


def _read_bracketed(text: str, whole: str) -> ParsedAnswer | None:
    match = re.fullmatch(r"(\\\{|[(\[{])(.*?)(\\\}|[)\]}])", text, re.DOTALL)
    if match is None or len(split_outside_brackets(f"({match[2]})", re.compile(","))) > 1:
        return None
    opening, inner, closing = match[1].lstrip("\\"), match[2], match[3].lstrip("\\")
    if not closes_at_end(text, match[1], match[3]):
        return None
    parts = split_outside_brackets(inner, re.compile("[,;]"))
    if not inner.strip():
        return ParsedAnswer(r"\emptyset") if opening == "{" else ParsedAnswer(whole)
    if opening == "{" and closing == "}":
        if builder := SET_BUILDER.fullmatch(inner):
            condition = _read(builder["condition"])
            return condition if isinstance(condition, Interval) and condition.name == builder["name"] else ParsedAnswer(whole)
        if len(parts) == 1 and match[1] == "{":
            return _read(inner)
        return Collection(whole, "set", tuple(map(_read, parts))) if all(parts) else ParsedAnswer(whole)
    if len(parts) == 1:
        return _read(inner) if opening + closing in ("()", "[]") else ParsedAnswer(whole)
    if not all(parts):
        return ParsedAnswer(whole)
    items = tuple(map(_read, parts))
    if opening + closing in ("(]", "[)", "[]") and len(items) == 2:
        return Interval(whole, (items[0], items[1]), (opening == "[", closing == "]"))
    return Collection(whole, "tuple", items) if opening + closing in ("()", "[]") else ParsedAnswer(whole)


def _read_ratio(text: str, whole: str) -> ParsedAnswer | None:
    if CLOCK.fullmatch(text):
        return ParsedAnswer(re.sub(r"[{}\s.]|\\text", "", whole).casefold())
    parts = split_outside_brackets(text.replace(r"\colon", ":"), re.compile(":"))
    if len(parts) < 2 or not all(parts):
        return None
    items = tuple(map(_read, parts))
    return Collection(whole, "ratio", items) if all(isinstance(item, Quantity) for item in items) else ParsedAnswer(whole)
