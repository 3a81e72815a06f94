"""The result of reward functions for a sample: one outcome per reward, and the combined reward."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_CALLS_TOGETHER = 32  # quick calls sent to a worker in one message: a message costs about a millisecond, mostly of the trainer's process
QUICK_SECONDS = 1e-3
RAW_REWARD = "reward"  # the key of the reward before it was normalised; entries of a function have a slash in their key


class OutcomeKind(enum.Enum):
    """A score, or why there is none. NOT_APPLICABLE: the function returned None, which is not a failure. SKIPPED: it was not called."""

    SCORE = "score"
    TIMEOUT = "timeout"
    ERROR = "error"
    NOT_APPLICABLE = "not applicable"
    SKIPPED = "skipped"

    @property
    def failed(self) -> bool:
        return self in (OutcomeKind.TIMEOUT, OutcomeKind.ERROR)


@dataclass(frozen=True)
class Outcome:
    """Result of one reward for one sample. value: set for SCORE only. detail: what went wrong. seconds: run time of the function."""

    kind: OutcomeKind
    value: float | None = None
    detail: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleReward:
    """The reward of one sample. reward: None where a reward that counts failed, or where none applies. No reward is not a reward of 0.

    components: outcome by reward name. metrics: the other entries that functions returned, as `<reward name>/<entry>`; where rewards are
    normalised, also `RAW_REWARD`.
    """

    reward: float | None
    components: Mapping[str, Outcome]
    metrics: Mapping[str, float]


def to_plain_text(text: str) -> str:
    """Exactly a str (no subclass), in which what does not print (terminal commands, NUL, lone surrogates) is written as its escape."""
    plain = str.__str__(text)
    return plain if plain.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in plain)


def are_quick(outcomes: Iterable[Outcome]) -> bool:
    """Whether each call was so short that the next ones may wait and go together."""
    return all(outcome.seconds < QUICK_SECONDS for outcome in outcomes)
