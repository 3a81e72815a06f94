"""Splits a text outside of its brackets; half-open intervals, (1, 2], are brackets too."""

from __future__ import annotations

import re

from rlkit.grading.decoration import find_closing

OPENINGS = ("(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\lvert", r"\begin{")
BRACKET = re.compile(r"\\begin\{|\\end\{|\\[lr](?:floor|ceil|vert)(?![a-zA-Z])|\\[{}]|[()\[\]{}]")
RELATION = re.compile(r"<=|>=|=<|\\(?:le|leq|leqslant|ge|geq|geqslant|lt|gt|in)(?![a-zA-Z])|(?<![:!])=|<|>")


def split_outside_brackets(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The parts of a text between the matches of a pattern that stand outside of all brackets. One part where brackets do not match."""
    inside, depth, start = [], 0, 0
    for bracket in BRACKET.finditer(text):
        opening = bracket[0] in OPENINGS
        if opening and depth == 0:
            start = bracket.start()
        depth += 1 if opening else -1
        if depth < 0:
            return [text]
        if depth == 0:
            inside.append((start, bracket.end()))
    if depth:
        return [text]
    parts, at = [], 0
    for match in pattern.finditer(text):
        if not any(start <= match.start() < end for start, end in inside):
            parts.append(text[at : match.start()])
            at = match.end()
    return [part.strip() for part in [*parts, text[at:]]]


def list_relations(text: str) -> list[str]:
    depth, found = 0, []
    for match in re.finditer(rf"(?P<bracket>{BRACKET.pattern})|(?P<relation>{RELATION.pattern})", text):
        if match["bracket"]:
            depth += 1 if match[0] in OPENINGS else -1
        elif depth == 0:
            found.append(match[0])
    return found


def closes_at_end(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket is closed by the last one: not (1)+(2)."""
    if opening == "{":
        return find_closing(text, 0) == len(text) - 1
    depth = 0
    for bracket in BRACKET.finditer(text):
        depth += 1 if bracket[0] in OPENINGS else -1
        if depth == 0 and bracket.end() < len(text):
            return False
    return depth == 0


def count_levels(text: str) -> int:
    """The depth of the brackets in a text."""
    depth = deepest = 0
    for bracket in BRACKET.finditer(text):
        depth += 1 if bracket[0] in OPENINGS else -1
        deepest = max(deepest, depth)
    return deepest
