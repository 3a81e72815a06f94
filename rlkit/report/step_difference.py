"""How a step that was computed again differs from what a run recorded of it: samples token by token, and metrics.

A difference of 0 means equal to the bit: JSON keeps every digit of a float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.report.names import MACHINE

Row = Mapping[str, Any]
OF_TOKENS = {
    "ids": "tokens",
    "rollout_logprobs": "log-probs of the sampler",
    "logprobs": "log-probs of the trainer",
    "entropies": "entropies",
}
CHARACTERS = 60  # of a text in a message


@dataclass(frozen=True)
class StepDifference:
    """Of one quantity: how many values were compared, how many differ, the largest difference of numbers, and where the first is."""

    name: str
    compared: int
    differing: int
    largest: float
    first: str  # empty where none differs

    def describe(self) -> str:
        """`equal (512)`, or `3 of 512 differ, by at most 0.0012; first: sample 4 token 17: -0.1 -> -0.2`."""
        if not self.differing:
            return f"equal ({self.compared:,})"
        by = f", by at most {self.largest:.3g}" if self.largest else ""
        return f"{self.differing:,} of {self.compared:,} differ{by}; first: {self.first}"


def compare_samples(recorded: Sequence[Row], replayed: Sequence[Row]) -> list[StepDifference]:
    """Completions, rewards, advantages, and what was recorded of each token. Samples are found by their keys; one that is gone differs."""
    again = {tuple(row["key"]): row for row in replayed}
    pairs = [(number, row, again.get(tuple(row["key"]), {})) for number, row in enumerate(recorded, start=1)]
    scores = [
        (f"sample {n} {name}", score, new.get("rewards", {}).get(name)) for n, row, new in pairs for name, score in row["rewards"].items()
    ]
    found = [
        summarize_difference("completions", [(f"sample {n}", row["completion"], new.get("completion")) for n, row, new in pairs]),
        summarize_difference("rewards", scores),
        summarize_difference("advantages", [(f"sample {n}", row["advantage"], new.get("advantage")) for n, row, new in pairs]),
    ]
    for key, name in OF_TOKENS.items():
        values = [value for n, row, new in pairs for value in pair_tokens(n, row.get("tokens"), new.get("tokens"), key)]
        if values:
            found.append(summarize_difference(name, values))
    return found


def pair_tokens(number: int, recorded: Row | None, replayed: Row | None, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Each recorded value of a sample with that of the replay; nothing where none was recorded."""
    if recorded is None:
        return
    again = (replayed or {}).get(key) or []
    for token, value in enumerate(recorded.get(key) or [], start=1):
        if value is not None:
            yield f"sample {number} token {token}", value, again[token - 1] if token <= len(again) else None


def compare_metrics(recorded: Row, replayed: Row) -> list[StepDifference]:
    """Every metric of the recorded row that does not depend on the machine, and that the replay has: it evaluates nothing."""
    names = [name for name in recorded if name in replayed and name != "attempt" and not name.startswith(MACHINE)]
    numbers = [name for name in names if isinstance(recorded[name], int | float)]
    return [summarize_difference(name, [("", recorded[name], replayed[name])]) for name in numbers]


def summarize_difference(name: str, values: Sequence[tuple[str, Any, Any]]) -> StepDifference:
    """values: place, recorded, replayed."""
    unequal = [(place, old, new) for place, old, new in values if old != new]
    gaps = [abs(old - new) for _, old, new in unequal if isinstance(old, int | float) and isinstance(new, int | float)]
    first = " ".join(filter(None, [f"{unequal[0][0]}:" if unequal[0][0] else "", show_change(*unequal[0][1:])])) if unequal else ""
    return StepDifference(name, len(values), len(unequal), max(gaps, default=0.0), first)


def show_change(old: Any, new: Any) -> str:
    return f"{shorten_value(old)} -> {'nothing' if new is None else shorten_value(new)}"


def shorten_value(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= CHARACTERS else f"{shown[:CHARACTERS]}..."
