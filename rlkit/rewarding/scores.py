"""From what a reward function returned to scores: real numbers of at most 1e100, and the numbers beside them."""

from __future__ import annotations

import decimal
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewarding.forms import OPENRLHF, Form
from rlkit.rewarding.outcome import to_plain_text

Score = tuple[float | None, dict[str, float]]  # None: not applicable; the dict: entries to log

SCORE_KEYS = ("score", "reward", "overall")  # of rlkit and verl, of rlkit, of EasyR1
LARGEST_SCORE = 1e100  # beyond it the square of a score, in the deviation of a group, leaves the range of a float
MAX_ENTRIES = 100  # of a dict beside its score; the others are left out
SHOWN_CHARACTERS = 80  # of a returned value in a message, and of the name of an entry
REAL_DTYPE = re.compile(r"(torch\.)?(bool|u?int|b?float)")  # of numpy, torch and jax; not complex, text, object, datetime


class InvalidScore(Exception):
    """A reward function returned something that is not a score."""


def parse_scores(form: Form, returned: Any, count: int, logged: Sequence[Mapping[Any, Sequence[Any]]]) -> list[Score]:
    """The scores in what a function returned, one per item. Raises InvalidScore where it is not a score, or where the number is wrong.

    logged: what the function logged for each item, by name; the mean of the numbers of a name is an entry.
    """
    if not form.batch:
        return [_parse_score(returned)]
    logs: Any = None
    if form is OPENRLHF and isinstance(returned, Mapping):
        if "rewards" not in returned:
            raise InvalidScore(f"a dict needs the entry rewards, it has {', '.join(map(str, returned)) or 'none'}")
        returned, logs = returned["rewards"], returned.get("extra_logs")
    if _count_scores(returned) is None:
        raise InvalidScore(f"a group of {count} needs a list of {count} scores, it returned {_format_value(returned)}")
    if _count_scores(returned) != count:
        raise InvalidScore(f"a group of {count} needs {count} scores, it returned {_count_scores(returned)}")
    scores = [_parse_score(value) for value in returned]
    for name, values in logs.items() if isinstance(logs, Mapping) else ():
        each = list(values) if _count_scores(values) == count else [values] * count
        logged = [{**own, name: [value]} for own, value in zip(logged, each, strict=True)]
    return [(score, entries | parse_entries(_average(own))) for (score, entries), own in zip(scores, logged, strict=True)]


def _count_scores(returned: Any) -> int | None:
    """How many scores a list, tuple, array or tensor holds; None where it is nothing of the kind."""
    if isinstance(returned, (str, bytes, Mapping, set, frozenset)) or not hasattr(returned, "__iter__"):
        return None
    try:
        return len(returned)
    except TypeError:  # a generator; an array without dimensions
        return None


def _parse_score(returned: Any) -> Score:
    if not isinstance(returned, Mapping):
        return parse_number(returned), {}
    key = next((key for key in SCORE_KEYS if key in returned), None)
    if key is None:
        raise InvalidScore(f"a dict needs one of the entries {', '.join(SCORE_KEYS)}, it has {', '.join(map(str, returned)) or 'none'}")
    return parse_number(returned[key]), parse_entries({name: value for name, value in returned.items() if name != key})


def parse_entries(entries: Mapping[Any, Any]) -> dict[str, float]:
    """Those that could be scores, with plain names, at most MAX_ENTRIES."""
    found = {to_plain_text(str(name))[:SHOWN_CHARACTERS]: _to_float(value) for name, value in entries.items() if _is_number(value)}
    kept = {name: value for name, value in found.items() if value is not None and abs(value) <= LARGEST_SCORE}
    return dict(list(kept.items())[:MAX_ENTRIES])


def _average(logged: Mapping[Any, Sequence[Any]]) -> dict[Any, float]:
    known = {name: [_to_float(value) for value in values if _is_number(value)] for name, values in logged.items()}
    numbers_of = {name: [value for value in values if value is not None] for name, values in known.items()}
    return {name: math.fsum(values) / len(values) for name, values in numbers_of.items() if values}


def parse_number(value: Any) -> float | None:
    """A score, or None where it is None. Raises InvalidScore where it is no finite real number of at most LARGEST_SCORE in size."""
    if value is None:
        return None
    if not _is_number(value):
        raise InvalidScore(f"a score is a number or None, it returned {_format_value(value)}")
    score = _to_float(value)
    if score is None or abs(score) > LARGEST_SCORE:
        raise InvalidScore(f"a score must be finite and at most {LARGEST_SCORE:g} in size, it returned {_format_value(value)}")
    return score


def _is_number(value: Any) -> bool:
    """Whether it is one real number: of Python, or a scalar or an array without dimensions of numpy, torch or jax (none is imported)."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return getattr(value, "shape", None) == () and REAL_DTYPE.match(str(dtype)) is not None
    return isinstance(value, (numbers.Real, decimal.Decimal))


def _to_float(value: Any) -> float | None:
    """None where it is not finite, or too large for a float."""
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer of 400 digits; Decimal("sNaN")
        return None
    return number if math.isfinite(number) else None


def _format_value(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - whatever its __repr__ raises; an integer of 5,000 digits has none
        text = f"({type(error).__name__} in its repr)"
    shown = f"{text[:SHOWN_CHARACTERS]}..." if len(text) > SHOWN_CHARACTERS else text
    return to_plain_text(f"{type(value).__name__} {shown}")
