"""What a reward worker gets when it starts, and what it returns. Plain dataclasses: a worker starts without pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlkit.rewarding.outcome import Outcome


@dataclass(frozen=True)
class WorkerReward:
    """One reward as a worker runs it. timeout and cpu_seconds (seconds) are for one sample; args are passed to the function by name.

    pickled: the function, where no file holds it (python_functions.py).
    """

    name: str
    path: str
    args: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 10.0
    cpu_seconds: float = 20.0
    concurrency: int = 32
    pickled: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class WorkerLimits:
    """workers: processes. load_timeout: seconds to import the reward files. memory_gib: memory that one worker may allocate."""

    workers: int
    load_timeout: float
    memory_gib: float


class FunctionKind(NamedTuple):
    """What the workers found out about a reward function.

    settings: names of the parameters that no data column fills. from_trainer: names of what it gets and no data column holds.
    """

    batch: bool
    is_async: bool
    settings: frozenset[str]
    from_trainer: frozenset[str]


class LoadResult(NamedTuple):
    """What importing the reward files gave. message: for the user, where they cannot be used. pid: of the worker."""

    kinds: list[FunctionKind]
    message: str
    pid: int


class UnitResult(NamedTuple):
    """outcomes: of the calls that were made. spent: the worker must be replaced, before the other calls. growth: why, for the user."""

    outcomes: list[Outcome]
    spent: bool
    growth: str
