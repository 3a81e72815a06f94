"""Guess a number by halves: an environment of reset and step, as Gymnasium has them."""

from __future__ import annotations

import random
import re
from typing import Any

NUMBER = re.compile(r"-?\d{1,9}")


class GuessNumber:
    """The policy writes numbers, of which the last one of a turn is its guess, and reads higher, lower or right. It earns 1 where it finds
    the number."""

    def __init__(self, top: int = 64, guesses: int = 6) -> None:
        self.top, self.guesses = top, guesses

    def reset(self, *, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The number is that of the column `secret`, else one drawn by the seed."""
        secret = options.get("secret")
        self.secret = int(secret) if secret is not None else random.Random(seed).randint(1, self.top)
        self.left = self.guesses
        rules = f"You have {self.guesses} guesses: write one number, and I answer higher or lower."
        return f"I think of a whole number from 1 to {self.top}. {rules}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        found = NUMBER.findall(action)
        if found and int(found[-1]) == self.secret:
            return "right", 1.0, True, False, {}
        answer = ("higher" if self.secret > int(found[-1]) else "lower") if found else f"write a number from 1 to {self.top}"
        return answer, 0.0, False, self.left == 0, {}

    def get_metrics(self) -> dict[str, float]:
        return {"guesses": self.guesses - self.left}
