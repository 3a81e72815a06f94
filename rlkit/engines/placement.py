"""Who has the memory when: the one place that orders parking, waking, sending and sleeping.

    training --park--> parked --wake_weights--> open --send--> filled --wake_cache--> rollout
    training <--resume-- parked <------------------------sleep------------------------ rollout

What is alive at once: the training state with nothing of the rollout engine; or the engine's weights with those of the policy that are
being sent, and only then its cache. Any other move raises. Where all fits at once (resident) the moves are the same and touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from rlkit.engines.base import Offloadable, RolloutEngine, Source
from rlkit.profiling.memory_peak import PeakMemory, build_memory_metrics

MOVES = {  # (where memory is, move) -> where it is then
    ("training", "park"): "parked",
    ("parked", "wake_weights"): "open",
    ("open", "send"): "filled",
    ("filled", "wake_cache"): "rollout",
    ("rollout", "send"): "rollout",  # the first weights: the engine starts awake
    ("rollout", "sleep"): "parked",
    ("parked", "resume"): "training",
}


class Trained(Source, Offloadable, Protocol):
    """What a placement asks of the policy."""


class Colocated:
    """Policy and rollout engine take turns on the same devices; `phase` names and times what is done on the way.

    It begins as the engines are built: the training state parked, the rollout engine awake and without weights. mode (as in
    rlkit/profiling/memory_estimate.py): sleep_and_offload, the training state leaves the device for a rollout; resident, nobody leaves,
    and freed memory waits for who needs it next.
    """

    def __init__(
        self,
        policy: Trained,
        engine: RolloutEngine,
        others: tuple[Offloadable, ...],
        phase: Callable[[str], AbstractContextManager[None]],
        send: Callable[[Trained, RolloutEngine, int], None],
        mode: str = "sleep_and_offload",
        predicted: Mapping[str, float] | None = None,
    ) -> None:
        self.policy, self.engine, self.others, self.phase = policy, engine, others, phase
        self.sender, self.mode, self.predicted = send, mode, dict(predicted or {})
        self.gauge = PeakMemory()
        self.peaks: dict[str, float] = {}  # bytes, of the last time in a phase
        self.version = 0  # of the policy's weights: the number of steps that were trained into them
        self.state = "rollout"
        self.parked = self.sent = False  # by the last rollout, as it began
        self._inside: str | None = None

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Inside, the engine samples from the policy as it is now."""
        with self._alone("rollout"):
            with self.phase("sync"):
                self.parked, self.sent = self.state == "training", self.engine.version != self.version
                if self.state == "training":
                    self.park()
                    self.gauge.start()  # what has left is no part of this phase
                    self.wake_weights()
                self._fill()
            yield

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside a rollout, for a model that judges its samples: the engine asleep, and afterwards awake again with the same weights."""
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
        """Inside, the policy learns; what the engine holds is old afterwards only if `version` was raised."""
        with self._alone("train"):
            with self.phase("resume"):
                if self.state == "rollout":
                    self.sleep()
                    self.gauge.start()
                    self.resume()
            yield

    def park(self) -> None:
        self._move("park")
        for movable in self._movables():
            movable.park()
        self._give_back()

    def wake_weights(self) -> None:
        self._move("wake_weights")
        with self.gauge.behind_torch():
            self.engine.wake_weights()

    def send(self) -> None:
        self._move("send")
        self.sender(self.policy, self.engine, self.version)
        self._give_back()

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
        self._give_back()

    def resume(self) -> None:
        self._move("resume")
        for movable in self._movables():
            movable.resume()

    def _movables(self) -> tuple[Offloadable, ...]:
        return (self.policy, *self.others) if self.mode == "sleep_and_offload" else ()

    def _give_back(self) -> None:
        """What was freed, to the device: the two engines have allocators of their own."""
        if self.mode != "resident" and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _move(self, move: str) -> None:
        if (self.state, move) not in MOVES:
            valid = ", ".join(known for state, known in MOVES if state == self.state)
            raise RuntimeError(f"{move} while memory is in the state {self.state}; there: {valid}")
        self.state = MOVES[self.state, move]

    @contextmanager
    def _alone(self, phase: str) -> Iterator[None]:
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
        """GiB at the peak of each phase, measured and predicted."""
        return build_memory_metrics(self.peaks, self.predicted)
