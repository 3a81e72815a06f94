"""When rewards fail too often: the limit, what is said, and the file that shows it again."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlkit.rewarding.outcome import Outcome
from rlkit.rewarding.spec import RewardSettings, RewardSpec

WINDOW = 1000  # samples over which the rate is taken
FEWEST = 3  # failures that it takes at least: one among few is an accident
TRACEBACK_LINES = 4
SAMPLE_CHARACTERS = 200


class FailureWindow:
    """Whether a reward failed for more than `limit` of the last 1,000 samples, and at least three times (once, with a limit of 0)."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def add(self, failed: Iterable[bool]) -> None:
        self._failed.extend(failed)

    def exceeded(self) -> bool:
        failures = sum(self._failed)
        return failures > self._limit * len(self._failed) and failures >= (FEWEST if self._limit > 0 else 1)

    def state(self) -> str:
        """One character a sample, oldest first: 1 where it failed."""
        return "".join("1" if failed else "0" for failed in self._failed)

    def restore(self, state: str) -> None:
        self._failed = deque((character == "1" for character in state), maxlen=WINDOW)

    def message(self, spec: RewardSpec, key: Hashable, item: Mapping[str, Any], outcome: Outcome, file: Path) -> str:
        """What to tell the person: at most ten lines."""
        told = "\n".join(f"  {line}" for line in outcome.detail.strip().splitlines()[-TRACEBACK_LINES:])
        sample = json.dumps(str(item.get("completion", ""))[:SAMPLE_CHARACTERS], ensure_ascii=False)
        return (
            f"rewards.{spec.name} ({spec.path}) failed for {sum(self._failed)} of the last {len(self._failed)} samples, "
            f"more than rewarding.max_failure_rate={self._limit:g} allows. The first ({outcome.kind.value}), sample {key}:\n"
            f"{told}\n  completion: {sample}\nSee it again: rlkit reward retry {file}"
        )


def write_replay(
    folder: Path, spec: RewardSpec, settings: RewardSettings, items: Sequence[Mapping[str, Any]], key: Hashable, outcome: Outcome
) -> Path:
    """Write all that is needed to call the reward again in the same way. Returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{spec.name}.json"
    content = {
        "reward": asdict(spec) | {"args": dict(spec.args)},
        "deadline": settings.deadline if spec.deadline is None else spec.deadline,
        "working_directory": os.getcwd(),
        "sample": str(key),
        "outcome": {"kind": outcome.kind.value, "detail": outcome.detail},
        "items": [dict(item) for item in items],  # to read
        "pickled": base64.b64encode(pickle.dumps([dict(item) for item in items])).decode(),  # to call with: JSON has no dates, no bytes
    }
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return file
