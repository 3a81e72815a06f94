"""Who has the memory when: the one place that orders parking, waking, syncing and sleeping.

A placement is in one of two phases. rollout: training state parked, the engine awake with the policy's newest weights. train: the engine
asleep, training state back. Weights are sent only when they are newer than what the engine holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rlkit.engines.base import Movable, RolloutEngine, Source


class Trained(Source, Movable, Protocol):
    """What a placement asks of the policy."""


class Colocated:
    """Policy and rollout engine take turns on the same devices; `phase` names and times what is done on the way."""

    def __init__(
        self, policy: Trained, engine: RolloutEngine, others: tuple[Movable, ...], phase: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self.policy, self.engine, self.others, self.phase = policy, engine, others, phase
        self.version = 0  # of the policy's weights: the number of steps that were trained into them
        self._inside: str | None = None

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Inside, the engine samples from the policy as it is now."""
        self._enter("rollout")
        try:
            with self.phase("sync"):
                for movable in (self.policy, *self.others):
                    movable.park()
                self._wake()
            yield
        finally:
            self._inside = None

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside a rollout, for a model that judges its samples: the engine asleep, and afterwards awake again with the same weights."""
        self.engine.sleep()
        try:
            yield
        finally:
            self._wake()

    def _wake(self) -> None:
        self.engine.wake()
        if self.engine.version != self.version:
            self.engine.load(self.policy.weights(), self.version)

    @contextmanager
    def train(self) -> Iterator[None]:
        """Inside, the policy learns; what the engine holds is old afterwards only if `version` was raised."""
        self._enter("train")
        try:
            with self.phase("resume"):
                self.engine.sleep()
                for movable in (self.policy, *self.others):
                    movable.resume()
            yield
        finally:
            self._inside = None

    def _enter(self, phase: str) -> None:
        if self._inside is not None:
            raise RuntimeError(f"phase {phase} was entered inside phase {self._inside}")
        self._inside = phase
