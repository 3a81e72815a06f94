"""Environments as people write them for other toolkits, one of each shape; test_shapes.py runs them unchanged."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Generic, TypeVar


class HigherLower:
    """TRL's shape: what reset returns goes to the prompt, public methods are tools, what they raise is their answer."""

    def __init__(self, top: int = 64) -> None:
        self.top = top

    def reset(self, **row: Any) -> str:
        self.secret, self.done, self.tries = row["secret"], False, 0
        return f" It is between 1 and {self.top}."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: The number that you guess.
        """
        self.tries += 1
        if number > self.top:
            raise ValueError(f"{number} is more than {self.top}")
        self.done = number == self.secret
        return "right" if self.done else "higher" if number < self.secret else "lower"

    async def hint(self) -> bytes:
        """Ask for a hint."""
        await asyncio.sleep(0)
        return b"even" if self.secret % 2 == 0 else b"odd"

    def get_reward(self) -> float:
        return 1.0 / self.tries if self.done else 0.0

    def get_metrics(self) -> dict[str, Any]:
        return {"tries": self.tries, "comment": "none"}

    def _helper(self) -> None:
        raise AssertionError("no tool")


def add(a: int, b: float = 1.0) -> float:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def wait(seconds: float) -> dict[str, float]:
    """Wait a while.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return {"waited": seconds}


def draw() -> str:
    """Draw a random number."""
    return f"{random.random():.6f}"


class Countdown:
    """Gymnasium's shape: reset with a seed, five values from step."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.left = int((options or {}).get("start", 3))
        return f"seed {seed}, {self.left} left", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return f"{action}: {self.left} left", 0.25, self.left == 0, False, {}


def make_countdown(start: int) -> Countdown:
    """A factory, as gymnasium.make is one."""
    return Countdown()


class Stepping:
    """A class of tools, one of which has the name of Gymnasium's method."""

    max_sessions = 8

    def reset(self, **row: Any) -> None: ...

    def step(self, direction: str) -> str:
        """Go.

        Args:
            direction: Where.
        """
        return direction

    def get_reward(self) -> float:
        return 0.0


class Pendulum:
    """Gymnasium's shape with numbers, which no language model reads."""

    def reset(self, seed: int | None = None) -> tuple[list[float], dict[str, Any]]:
        return [0.1, 0.2], {}

    def step(self, action: str) -> tuple[list[float], float, bool, bool, dict[str, Any]]:
        return [0.0, 0.0], 0.0, False, False, {}


Act, Observe, State = TypeVar("Act"), TypeVar("Observe"), TypeVar("State")


class EnvClient(Generic[Act, Observe, State]):
    """The part of OpenEnv's client that users see, without its server."""

    def reset(self, **settings: Any) -> SimpleNamespace:
        self.last = f"seed {settings['seed']}"
        return self._parse_result({})

    def step(self, action: Act) -> SimpleNamespace:
        self.last = self._step_payload(action)["message"]
        return self._parse_result({"reward": len(self.last), "done": self.last == "bye"})

    def _step_payload(self, action: Act) -> dict[str, Any]:
        raise NotImplementedError

    def _parse_result(self, payload: dict[str, Any]) -> SimpleNamespace:
        raise NotImplementedError


@dataclass
class EchoAction:
    message: str
    times: int = 1


@dataclass
class EchoObservation:
    echo: str
    reward: float | None = None


class Echo(EnvClient[EchoAction, EchoObservation, dict]):
    def _step_payload(self, action: EchoAction) -> dict[str, Any]:
        return {"message": action.message * action.times}

    def _parse_result(self, payload: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(observation=EchoObservation(self.last), reward=payload.get("reward"), done=payload.get("done", False))


class NoTools:
    def reset(self, **row: Any) -> None: ...


class Undocumented:
    def reset(self, **row: Any) -> None: ...

    def look(self, where: str) -> str:
        return where
