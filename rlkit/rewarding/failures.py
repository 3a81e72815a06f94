"""The limit on how often a reward may fail, and the message where it fails more often."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome

WINDOW = 1000  # samples over which the rate is computed
MIN_FAILURES = 3  # with fewer, the rate is not looked at: one failure among few samples is an accident
TRACEBACK_LINES = 4
SAMPLE_CHARACTERS = 200


class FailureWindow:
    """Whether a reward failed for more than `limit` of the last 1,000 samples, and at least three times (once, with a limit of 0)."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def add(self, failed: Iterable[bool]) -> None:
        self._failed.extend(failed)

    def is_over_limit(self) -> bool:
        failures = sum(self._failed)
        return failures > self._limit * len(self._failed) and failures >= (MIN_FAILURES if self._limit > 0 else 1)

    def state(self) -> str:
        """One character per sample, oldest first: 1 where it failed."""
        return "".join("1" if failed else "0" for failed in self._failed)

    def restore(self, state: str) -> None:
        self._failed = deque((character == "1" for character in state), maxlen=WINDOW)

    def format_message(self, reward: WorkerReward, key: Hashable, item: Mapping[str, Any], outcome: Outcome, file: Path | None) -> str:
        """The message for the user, of at most ten lines."""
        detail = "\n".join(f"  {line}" for line in outcome.detail.strip().splitlines()[-TRACEBACK_LINES:])
        completion = json.dumps(str(item.get("completion", ""))[:SAMPLE_CHARACTERS], ensure_ascii=False)
        again = f"The sample is in {file}" if reward.pickled else f"To reproduce it: rlkit reward retry {file}"
        return (
            f"rewards.{reward.name} ({reward.path}) failed for {sum(self._failed)} of the last {len(self._failed)} samples, "
            f"more than rewarding.max_failure_rate={self._limit:g} allows. The first ({outcome.kind.value}), sample {key}:\n"
            f"{detail}\n  completion: {completion}" + (f"\n{again}" if file else "")
        )
