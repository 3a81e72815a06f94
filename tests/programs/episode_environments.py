"""Environments of a run: the sums of the built-in model, in two turns."""

from __future__ import annotations

import random
import re
from typing import Any


def find_answer(text: str) -> str:
    """What is boxed last."""
    return (re.findall(r"\\boxed\{(\d+)\}", text) or [""])[-1]


class TwoSums:
    """Asks the sum of the row, then another one; the reward is the share of right answers. Both begin alike for a seed."""

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        rng = random.Random(seed)
        self.terms = rng.randrange(10, 50), rng.randrange(10, 50)
        self.answers = [options["answer"], str(sum(self.terms))]
        return "", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        reward = 0.5 * (find_answer(action) == self.answers.pop(0))
        text = f"What is {self.terms[0]} + {self.terms[1]}?" if self.answers else ""
        return text, reward, not self.answers, False, {}
