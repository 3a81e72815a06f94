"""Decides who holds the accelerator's memory when: the one place that orders offloading, waking, sending and sleeping.

    training --offload--> offloaded --wake_weights--> open --send--> filled --wake_cache--> rollout
    training <--reload--- offloaded <-------------------------sleep------------------------ rollout

What is on the device together: the training state with nothing of the rollout engine; or the engine's weights with those of the policy that
are being sent, and only then its cache. Any other move raises. In mode resident the moves are the same and touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from rlkit.engines.base import Offloadable, RolloutEngine, Source
from rlkit.profiling.memory_peak import PeakMemory, build_memory_metrics

MOVES = {  # (state of the memory, move) -> state after it
    ("training", "offload"): "offloaded",
    ("offloaded", "wake_weights"): "open",
    ("open", "send"): "filled",
    ("filled", "wake_cache"): "rollout",
    ("rollout", "send"): "rollout",  # the first weights: the engine starts awake
    ("rollout", "sleep"): "offloaded",
    ("offloaded", "reload"): "training",
}


class Placement(Protocol):
    """Where policy and rollout engine run, and when each may use the device."""

    version: int  # of the policy's weights: the number of steps trained into them
    offloaded: bool  # by the last rollout, as it began
    sent: bool  # whether weights were sent then

    def rollout(self) -> AbstractContextManager[None]:
        """Inside, the engine samples from the policy with its current weights."""
        ...

    def train(self) -> AbstractContextManager[None]:
        """Inside, the policy learns; the engine's weights are old afterwards only if `version` was raised."""
        ...

    def pause_rollout(self) -> AbstractContextManager[None]:
        """Inside a rollout, the device is free for a model that scores its samples; afterwards the engine has the same weights."""
        ...

    def memory(self) -> dict[str, float]:
        """GiB at the peak of each phase, measured and predicted."""
        ...


class MovablePolicy(Source, Offloadable, Protocol):
    """The policy, as a placement uses it."""


class Colocated:
    """A placement in which policy and rollout engine take turns on the same devices; `phase` names and times what is done between.

    It starts as the engines are built: the training state offloaded, the rollout engine awake and without weights. mode, as in
    rlkit/profiling/memory_estimate.py: sleep_and_offload, the training state leaves the device for a rollout; sleep, only the
    engine leaves; resident, nothing leaves, and freed memory stays with the allocator.
    """

    def __init__(
        self,
        policy: MovablePolicy,
        engine: RolloutEngine,
        others: tuple[Offloadable, ...],
        phase: Callable[[str], AbstractContextManager[None]],
        send: Callable[[Any, Any, int], None],
        mode: str = "sleep_and_offload",
        predicted: Mapping[str, float] | None = None,
    ) -> None:
        self.policy, self.engine, self.others, self.phase = policy, engine, others, phase
        self._send, self.mode, self.predicted = send, mode, dict(predicted or {})
        self.gauge = PeakMemory()
        self.peaks: dict[str, float] = {}  # bytes, of the last time in a phase
        self.version = 0
        self.state = "rollout"
        self.offloaded = self.sent = False
        self._inside: str | None = None

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """As of Placement."""
        with self._enter("rollout"):
            with self.phase("sync"):
                self.offloaded, self.sent = self.state == "training", self.engine.version != self.version
                if self.state == "training":
                    self.offload()
                    self.gauge.start()  # what has left is no part of this phase
                    self.wake_weights()
                self._fill()
            yield

    @contextmanager
    def pause_rollout(self) -> Iterator[None]:
        """As of Placement."""
        self.sleep()
        try:
            yield
        finally:
            self.wake_weights()
            self._fill()

    def _fill(self) -> None:
        if self.engine.version != self.version:
            self.send()
        if self.state != "rollout":
            self.wake_cache()

    @contextmanager
    def train(self) -> Iterator[None]:
        """As of Placement."""
        with self._enter("train"):
            with self.phase("resume"):
                if self.state == "rollout":
                    self.sleep()
                    self.gauge.start()
                    self.reload()
            yield

    def offload(self) -> None:
        self._move("offload")
        for movable in self._movables():
            movable.offload()
        self._empty_cache()

    def wake_weights(self) -> None:
        self._move("wake_weights")
        with self.gauge.behind_torch():
            self.engine.wake_weights()

    def send(self) -> None:
        self._move("send")
        self._send(self.policy, self.engine, self.version)
        self._empty_cache()

    def wake_cache(self) -> None:
        if self.state == "open" and self.engine.version == self.version:
            self.state = "filled"  # it kept its weights, and they are the policy's
        self._move("wake_cache")
        with self.gauge.behind_torch():
            self.engine.wake_cache()

    def sleep(self) -> None:
        self._move("sleep")
        with self.gauge.behind_torch():
            self.engine.sleep()
        self._empty_cache()

    def reload(self) -> None:
        self._move("reload")
        for movable in self._movables():
            movable.reload()

    def _movables(self) -> tuple[Offloadable, ...]:
        return (self.policy, *self.others) if self.mode == "sleep_and_offload" else ()

    def _empty_cache(self) -> None:
        """Returns freed memory to the device: the two engines have allocators of their own."""
        if self.mode != "resident" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _move(self, move: str) -> None:
        if (self.state, move) not in MOVES:
            valid = ", ".join(known for state, known in MOVES if state == self.state)
            raise RuntimeError(f"{move} while memory is in the state {self.state}; there: {valid}")
        self.state = MOVES[self.state, move]

    @contextmanager
    def _enter(self, phase: str) -> Iterator[None]:
        if self._inside is not None:
            raise RuntimeError(f"phase {phase} was entered inside phase {self._inside}")
        self._inside = phase
        self.gauge.start()
        try:
            yield
        finally:
            self.peaks[phase] = self.gauge.peak()
            self._inside = None

    def memory(self) -> dict[str, float]:
        """As of Placement."""
        return build_memory_metrics(self.peaks, self.predicted)
