"""Whether an answer is an expression of the prompt, in the same or another order: (x-4)(x+3) where (x+3)(x-4) is to be expanded."""

from __future__ import annotations

import re
from functools import lru_cache

from rlkit.grading.brackets import RELATION, split_outside_brackets
from rlkit.grading.decoration import strip_decoration
from rlkit.grading.evaluation import sort_terms
from rlkit.grading.expressions import Expression, parse_expression, walk
from rlkit.grading.tokens import NotUnderstood

MAX_CHARACTERS = 4000  # at the end of the prompt
OPERATIONS = frozenset({"add", "mul", "div", "pow", "factorial", "call", "sum"})
ANGLES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
ANGLE_IN_TEXT = re.compile(r"(?<![a-zA-Z])(?:sin|cos|tan|cot|sec|csc)(?:e|ine|gent)?(?![a-z])")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
PLAIN = re.compile(
    r"(?:(?:\\[a-zA-Z]+|\d+(?:\.\d+)?|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])|[-+*/^()\[\]{}_!|=×·÷−⁻√°]|[²³¹⁰⁴-⁹]|\b(?:sqrt|sin|cos|tan|log|ln|exp)\b)[^\S\n]*){3,400}"
)


def is_echo(given: str, reference: str, prompt: str) -> bool:
    """Whether an answer with operations stands in the prompt, and the reference is written in another way."""
    tree = _parse(split_outside_brackets(given, RELATION)[-1])
    if tree is None or not any(node.kind in OPERATIONS for node in walk(tree)):
        return False
    expected = _parse(split_outside_brackets(reference, RELATION)[-1])
    if ANGLES & _list_calls(tree) and not (expected and ANGLES & _list_calls(expected)) and ANGLE_IN_TEXT.search(prompt):
        return True  # cos 30 degrees where sin 60 degrees is to be computed
    form = sort_terms(tree)
    if form not in _list_expressions(prompt[-MAX_CHARACTERS:]):
        return False
    return expected is None or sort_terms(expected) != form


@lru_cache(maxsize=256)
def _list_expressions(prompt: str) -> frozenset[Expression]:
    """The expressions of a prompt and their parts, sorted."""
    texts = ["".join(groups) for groups in FORMULA.findall(prompt)] + PLAIN.findall(FORMULA.sub(" . ", prompt)) + PLAIN.findall(prompt)
    found: set[Expression] = set()
    for side in (side for text in texts for side in split_outside_brackets(text, RELATION)):
        for start in range(3):  # a word such as "a" before it
            if tree := _parse(side.strip(" .,:;?")[start:]):
                found |= {sort_terms(node) for node in walk(tree)}
                break
    return frozenset(found)


def _list_calls(tree: Expression) -> set[str]:
    return {node.value for node in walk(tree) if node.kind == "call"}


def _parse(text: str) -> Expression | None:
    try:
        return parse_expression(strip_decoration(text))
    except NotUnderstood:
        return None
