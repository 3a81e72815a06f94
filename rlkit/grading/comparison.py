"""Whether an answer is the reference: exactly equal, in a form that leaves nothing to do.

An answer is right, wrong or not understood; what is not understood is right only where it is the same text. No time limit is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from rlkit.grading.answer_kinds import Collection, Interval, Labelled, ParsedAnswer, Quantity, Restricted
from rlkit.grading.answers import is_ambiguous, is_name, read_answer
from rlkit.grading.choices import match_choice, match_choices, match_parts, read_reference_choice, split_parts
from rlkit.grading.decoration import normalise_text
from rlkit.grading.echo import is_echo
from rlkit.grading.evaluation import find_symbols, is_equal, is_proportional
from rlkit.grading.expressions import Expression, parse_expression
from rlkit.grading.extraction import MAX_ANSWER_CHARACTERS
from rlkit.grading.tokens import NotUnderstood
from rlkit.grading.undone import leaves_work
from rlkit.grading.units import is_usual

EVERYTHING = frozenset({r"(-\infty,\infty)", r"(-\infty,+\infty)"})
MAX_ELEMENTS = 40  # of a list or a set that are compared each with each
ORDERED = frozenset({"tuple", "matrix"})
REAL_NUMBERS = frozenset({"R", r"\mathbbR", "allrealnumbers", "allreals"})


@lru_cache(maxsize=16384)  # the samples of a group often have equal answers
def is_right(reference: str, given: str, prompt: str = "") -> bool:
    """Whether an answer equals the reference. prompt: an expression that stands in it is no answer."""
    if len(given) > MAX_ANSWER_CHARACTERS or not given.strip() or (re.search("[?？]", given) and "?" not in reference):
        return False
    if parts := split_parts(reference):
        return match_parts(parts, split_parts(given), is_right)
    if choice := read_reference_choice(reference):
        return match_choice(choice, given, is_right)
    if normalise_text(reference) == normalise_text(given) or match_choices(reference, given):
        return True
    if prompt and is_echo(given, reference, prompt):
        return False
    if prompt and not _are_units_known(given, f"{prompt} {reference}"):
        return False
    ambiguous = is_ambiguous(reference), is_ambiguous(given)
    if is_same(read_answer(reference), read_answer(given)):
        return True
    return ambiguous[0] != ambiguous[1] and is_same(read_answer(reference, ambiguous[0]), read_answer(given, ambiguous[1]))


def _are_units_known(given: str, context: str) -> bool:
    """Whether each unit of an answer is a usual one, or a word of the prompt: 72 clips, where clips are asked for."""
    answer = read_answer(given)
    items = answer.items if isinstance(answer, Collection) else (answer.value if isinstance(answer, Labelled) else answer,)
    units = {item.unit for item in items if isinstance(item, Quantity) and item.unit and not is_usual(item.unit)}
    return all(word.casefold()[:4] in context.casefold() for unit in units for word in re.findall(r"[^\W\d_]+", unit))


def is_same(reference: ParsedAnswer, given: ParsedAnswer) -> bool:
    """Whether two answers that were read are equal."""
    if reference.text and reference.text == given.text:
        return True
    if isinstance(reference, Restricted) or isinstance(given, Restricted):
        domains = {one.domain for one in (reference, given) if isinstance(one, Restricted)}
        values = [one.value if isinstance(one, Restricted) else one for one in (reference, given)]
        alone = not isinstance(reference, Restricted) and not all(re.search(r"\\in ?Z$", domain) for domain in domains)
        return len(domains) == 1 and not alone and is_same(*values)
    if isinstance(reference, Labelled) or isinstance(given, Labelled):
        return _is_same_labelled(reference, given)
    match reference, given:
        case Quantity(), Quantity():
            return _is_same_quantity(reference, given)
        case Interval(), Interval():
            named = reference.name and given.name and reference.name != given.name
            return not named and reference.closed == given.closed and all(map(is_same, reference.bounds, given.bounds))
        case (Collection(kind="tuple", text=text), _) if given.text in REAL_NUMBERS:
            return text in EVERYTHING
        case (_, Collection(kind="tuple", text=text)) if reference.text in REAL_NUMBERS:
            return text in EVERYTHING
        case (Interval(), Collection(kind="tuple", items=items)) | (Collection(kind="tuple", items=items), Interval()):
            interval = reference if isinstance(reference, Interval) else given
            assert isinstance(interval, Interval)
            return interval.closed == (False, False) and len(items) == 2 and all(map(is_same, interval.bounds, items))
        case (Interval(), _) | (_, Interval()):
            interval, other = (reference, given) if isinstance(reference, Interval) else (given, reference)
            return other.text in REAL_NUMBERS and isinstance(interval, Interval) and _is_everything(interval)
        case Collection(), Collection():
            return _is_same_group(reference, given)
        case Collection(kind="set" | "list", items=(Quantity() as only,)), Quantity():
            return _is_same_quantity(only, given)  # {5} for 5; the other way round a set is more than its element
    return False


def _is_everything(interval: Interval) -> bool:
    return [bound.text for bound in interval.bounds] in ([r"-\infty", r"\infty"], [r"-\infty", r"+\infty"])


def _is_same_labelled(reference: ParsedAnswer, given: ParsedAnswer) -> bool:
    """The left side may be absent where it is a name, never different. Sides between are equal to the last."""
    if isinstance(given, Labelled) and given.steps and not _are_steps_true(given):
        return False
    if isinstance(reference, Labelled) and isinstance(given, Labelled):
        if reference.left == given.left:
            return is_same(reference.value, given.value)
        return not (reference.named and given.named) and _is_same_equation(reference, given)
    if isinstance(reference, Labelled):
        return reference.named and _is_in_order(reference.left) and is_same(reference.value, given)
    assert isinstance(given, Labelled)
    return (given.named or not _has_symbols(given.steps)) and _is_in_order(given.left) and is_same(reference, given.value)


def _has_symbols(sides: Sequence[str]) -> bool:
    """Whether one of the sides is more than arithmetic: 2x of 2x = 42."""
    for side in sides:
        try:
            if find_symbols(parse_expression(side)):
                return True
        except NotUnderstood:
            return not isinstance(read_answer(side), Collection)
    return False


def _is_in_order(left: str) -> bool:
    """Whether the names of a left side stand in their usual order: (x, y) and not (y, x)."""
    names = re.findall("[a-zA-Z]", left) if left.startswith("(") else []
    return names == sorted(names)


def _are_steps_true(given: Labelled) -> bool:
    """Whether the sides before the last, as far as they have no symbols, have its value: 27 + 18 = 45, not 5 = 7."""
    for step in (read_answer(side) for side in given.steps if not is_name(side)):
        if isinstance(step, Quantity) and isinstance(given.value, Quantity):
            if not find_symbols(step.node) | find_symbols(given.value.node) and not is_equal(step.node, given.value.node):
                return False
        elif not is_same(step, given.value):
            return False
    return True


def _is_same_equation(reference: Labelled, given: Labelled) -> bool:
    """Whether two equations are the same up to a factor: 2x + 3y = 5 and 6y + 4x - 10 = 0."""
    if not isinstance(reference.value, Quantity) or not isinstance(given.value, Quantity):
        return False
    if reference.steps[1:] or given.steps[1:]:
        return False
    try:
        sides = [(parse_expression(one.left), one.value.node) for one in (reference, given)]  # type: ignore[attr-defined]
    except NotUnderstood:
        return False
    differences = [Expression("add", (left, Expression("neg", (right,)))) for left, right in sides]
    if len(find_symbols(differences[0])) < 2 or find_symbols(differences[0]) != find_symbols(differences[1]):
        return is_equal(sides[0][0], sides[1][0]) and is_equal(sides[0][1], sides[1][1])
    return is_proportional(*differences)


def _is_same_group(reference: Collection, given: Collection) -> bool:
    kinds = {reference.kind, given.kind}
    if kinds == {"list", "tuple"}:  # x = 1, y = 2 is the point (1, 2)
        named = reference if reference.kind == "list" else given
        lefts = [item.left for item in named.items if isinstance(item, Labelled)]
        in_order = len(lefts) == len(named.items) and lefts == sorted(set(lefts))
        return in_order and _match_in_order(reference.items, given.items)
    if "compound" in kinds:  # 3 hours 20 minutes, 3 hours and 20 minutes
        units = [[item.unit for item in group.items if isinstance(item, Quantity)] for group in (reference, given)]
        return kinds <= {"compound", "list"} and units[0] == units[1] and _match_in_order(reference.items, given.items)
    if kinds == {"list", "union"} and any(isinstance(item, Quantity | Labelled) for item in (*reference.items, *given.items)):
        return False
    if not (len(kinds) == 1 or kinds <= {"list", "set"} or kinds == {"list", "union"}):
        return False
    if kinds == {"ratio"}:
        return _is_same_ratio(reference, given)
    if kinds <= ORDERED or _has_lefts(reference) != _has_lefts(given):
        return _match_in_order(reference.items, given.items)
    items = [_drop_repeated(group.items) if "set" in kinds else list(group.items) for group in (reference, given)]
    return _match_in_any_order(*items)


def _has_lefts(group: Collection) -> bool:
    """Whether the items are equations of different left sides: without these, only the order tells which is which."""
    lefts = {item.left for item in group.items if isinstance(item, Labelled)}
    return len(lefts) > 1


def _match_in_order(reference: Sequence[ParsedAnswer], given: Sequence[ParsedAnswer]) -> bool:
    return len(reference) == len(given) and all(map(is_same, reference, given))


def _match_in_any_order(reference: Sequence[ParsedAnswer], given: Sequence[ParsedAnswer]) -> bool:
    if len(reference) != len(given):
        return False
    left = list(given)
    rest = []
    for item in reference:  # first those that are written alike
        same = next((at for at, other in enumerate(left) if item.text and other.text == item.text), None)
        if same is None:
            rest.append(item)
        else:
            del left[same]
    if len(rest) > MAX_ELEMENTS:
        return False
    for item in rest:
        found = next((at for at, other in enumerate(left) if is_same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _drop_repeated(items: Sequence[ParsedAnswer]) -> list[ParsedAnswer]:
    kept: list[ParsedAnswer] = []
    for item in {item.text or str(at): item for at, item in enumerate(items)}.values():
        if len(kept) > MAX_ELEMENTS or not any(is_same(other, item) for other in kept):
            kept.append(item)
    return kept


def _is_same_ratio(reference: Collection, given: Collection) -> bool:
    """a:b = c:d where a d = b c, for each neighbour of the first part."""
    nodes = [[item.node for item in group.items if isinstance(item, Quantity)] for group in (reference, given)]
    if len(nodes[0]) != len(nodes[1]):
        return False
    if any(is_equal(node, Expression("number", (), Fraction(0))) for node in nodes[0] + nodes[1]):
        return False
    first = nodes[0][0], nodes[1][0]
    return all(
        is_equal(Expression("mul", (first[0], b)), Expression("mul", (first[1], a)))
        for a, b in zip(nodes[0][1:], nodes[1][1:], strict=True)
    )


def _is_same_quantity(reference: Quantity, given: Quantity) -> bool:
    if reference.unit and given.unit and reference.unit != given.unit:
        return False
    if find_symbols(given.node) and not find_symbols(reference.node):
        return False
    if reference.modulus and given.modulus and reference.modulus != given.modulus:
        return False
    if leaves_work(reference.node, given.node):
        return False
    expected, found = reference.node, given.node
    if expected.kind == "base" or found.kind == "base":
        return _is_same_in_base(expected, found)
    if found.kind == "percent" and expected.kind != "percent":
        whole = reference.unit is None and _is_one_or_more(expected) and is_equal(expected, found.args[0])
        return whole or (reference.unit is None and is_equal(expected, found))
    if expected.kind == "percent" and found.kind != "percent":
        return given.unit is None and (is_equal(expected.args[0], found) or is_equal(expected, found))
    return is_equal(expected, found)


def _is_one_or_more(node: Expression) -> bool:
    """Whether a number may be meant in percent: 50, not 0.5."""
    return node.kind in ("number", "decimal") and node.value >= 1


def _is_same_in_base(reference: Expression, given: Expression) -> bool:
    """The digits and the base must agree; the base may be absent where the reference has one."""
    if given.kind == "base":
        return reference.kind == "base" and reference.value[0] == given.value[0] and is_equal(reference.value[1], given.value[1])
    return given.kind == "number" and Fraction(reference.value[0]) == given.value
