"""What a worker of sessions gets when it starts, and what it finds out about the environments. Plain dataclasses, without pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ONLY = ""  # the name of the environment where a recipe has one; several are named by the column `environment`


@dataclass(frozen=True)
class WorkerEnvironment:
    """One environment as a worker loads it: the class, the functions or the factory at `path`, and the arguments of the class."""

    name: str
    path: str
    args: Mapping[str, Any] = field(default_factory=dict)


class EnvironmentKind(NamedTuple):
    """What introspection found. shape: the name of its form. tools: JSON schema by name; None for one that reads text. sessions: how many
    may be open at the same time, where the environment limits it."""

    shape: str
    tools: Mapping[str, Mapping[str, Any]] | None
    has_reward: bool
    is_async: bool
    sessions: int | None


@dataclass(frozen=True)
class SessionJob:
    """All that a worker needs. timeout: seconds of one call. max_observation: characters of one answer. kinds: of the environments, where
    an earlier worker found them out."""

    environments: tuple[WorkerEnvironment, ...]
    timeout: float
    max_observation: int
    memory_gib: float
    kinds: tuple[EnvironmentKind, ...] | None = None
