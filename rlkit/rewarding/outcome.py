"""What came of asking a reward about a sample."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


class OutcomeKind(enum.Enum):
    """Score, or why there is none. NOT_APPLICABLE is the function's own None, no failure."""

    SCORE = "score"
    TIMEOUT = "timeout"
    ERROR = "error"
    NOT_APPLICABLE = "not applicable"

    @property
    def failed(self) -> bool:
        return self in (OutcomeKind.TIMEOUT, OutcomeKind.ERROR)


@dataclass(frozen=True)
class Outcome:
    """One reward's word on one sample. value only with SCORE; detail says what went wrong; seconds is the time the function took."""

    kind: OutcomeKind
    value: float | None = None
    detail: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


LUMP = 32  # quick calls that go together: handing one over takes about a millisecond of processors, most of them the trainer's
QUICK_SECONDS = 1e-3


def quick(outcomes: Iterable[Outcome]) -> bool:
    """Whether each took so little that the next may wait for others."""
    return all(outcome.seconds < QUICK_SECONDS for outcome in outcomes)


PLAIN = "reward"  # no entry of a function is called so: theirs have a slash


@dataclass(frozen=True)
class Verdict:
    """All rewards' word on one sample. reward is None where a reward that weighs failed or none applies: no reward is not a reward of 0.

    parts: outcome by reward name. metrics: the other entries of what the functions returned, as `<reward name>/<entry>`; where rewards are
    normalised, `PLAIN` is what the reward was before.
    """

    reward: float | None
    parts: Mapping[str, Outcome]
    metrics: Mapping[str, float]
