"""Who has the memory when: the one place that orders parking, waking, sending and sleeping.

    training --park--> parked --wake_weights--> open --send--> filled --wake_cache--> rollout
    training <--resume-- parked <------------------------sleep------------------------ rollout

What is alive at once: the training state with nothing of the rollout engine; or the engine's weights with those of the policy that are
being sent, and only then its cache. Any other move raises. Where all fits at once (resident) the moves are the same and touch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch

from rlkit.engines.base import Movable, RolloutEngine, Source

GIB = 2**30
MOVES = {  # (where memory is, move) -> where it is then
    ("training", "park"): "parked",
    ("parked", "wake_weights"): "open",
    ("open", "send"): "filled",
    ("filled", "wake_cache"): "rollout",
    ("rollout", "send"): "rollout",  # the first weights: the engine starts awake
    ("rollout", "sleep"): "parked",
    ("parked", "resume"): "training",
}


class Trained(Source, Movable, Protocol):
    """What a placement asks of the policy."""


class Colocated:
    """Policy and rollout engine take turns on the same devices; `phase` names and times what is done on the way.

    It begins as the engines are built: the training state parked, the rollout engine awake and without weights. swaps: training state
    leaves the device for a rollout.
    """

    def __init__(
        self,
        policy: Trained,
        engine: RolloutEngine,
        others: tuple[Movable, ...],
        phase: Callable[[str], AbstractContextManager[None]],
        send: Callable[[Trained, RolloutEngine, int], None],
        swaps: bool = True,
        predicted: Mapping[str, float] | None = None,
    ) -> None:
        self.policy, self.engine, self.others, self.phase = policy, engine, others, phase
        self.sender, self.swaps, self.predicted = send, swaps, dict(predicted or {})
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
                    self.resume()
            yield

    def park(self) -> None:
        self._move("park")
        for movable in self._movables():
            movable.park()
        empty_cache()

    def wake_weights(self) -> None:
        self._move("wake_weights")
        self.engine.wake_weights()

    def send(self) -> None:
        self._move("send")
        self.sender(self.policy, self.engine, self.version)
        empty_cache()

    def wake_cache(self) -> None:
        if self.state == "open" and self.engine.version == self.version:
            self.state = "filled"  # it kept its weights, and they are the policy's
        self._move("wake_cache")
        self.engine.wake_cache()

    def sleep(self) -> None:
        self._move("sleep")
        self.engine.sleep()
        empty_cache()

    def resume(self) -> None:
        self._move("resume")
        for movable in self._movables():
            movable.resume()

    def _movables(self) -> tuple[Movable, ...]:
        return (self.policy, *self.others) if self.swaps else ()

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
        reset_peak()
        try:
            yield
        finally:
            self.peaks[phase] = peak_memory()
            self._inside = None

    def memory(self) -> dict[str, float]:
        """GiB at the peak of each phase, measured and predicted."""
        measured = {f"memory/{phase}_peak_gib": size / GIB for phase, size in self.peaks.items()}
        return measured | {f"memory/{phase}_predicted_gib": size / GIB for phase, size in self.predicted.items()}


def reset_peak() -> None:
    """Peaks are counted from here: of the device, or of this process where there is none."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # a container may forbid it: then the peak is that of the whole run
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Bytes since `reset_peak`."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_reserved())
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def empty_cache() -> None:
    """Gives freed memory back to the device: the two engines have allocators of their own."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
