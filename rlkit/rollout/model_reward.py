"""A reward model as a reward: `rewards: {rm: {path: reward_model, args: {model: FOLDER}}}`.

It shares the device with the policy, so it runs in the process of the trainer, in a phase of its own once the samples are there; the other
rewards are at work meanwhile, in their processes. Its own chat template writes prompt and completion, as one finished conversation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from rlkit.data.renderer import Renderer
from rlkit.errors import UserError
from rlkit.rewarding.outcome import Outcome, OutcomeKind


class Scorer(Protocol):
    """What it asks of the model."""

    longest: int | None  # tokens that the model can read

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]: ...

    def park(self) -> None: ...

    def resume(self) -> None: ...


class ModelReward:
    """Scores samples together; `room` opens a phase in which the device is the model's."""

    def __init__(self, renderer: Renderer, scorer: Scorer, room: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.renderer, self.scorer, self.room = renderer, scorer, room

    def judge(self, items: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """An outcome for each item (prompt, completion), in their order. What cannot be read, or is no finite number, is an error."""
        started = time.perf_counter()
        rows = [self._tokens(item) for item in items]
        readable = [row for row in rows if not isinstance(row, str)]
        with self.room():
            self.scorer.resume()
            try:
                scores = iter(self.scorer.scores(readable))
            finally:
                self.scorer.park()
        seconds = (time.perf_counter() - started) / max(len(items), 1)
        return [_outcome(row if isinstance(row, str) else next(scores), seconds) for row in rows]

    def _tokens(self, item: Mapping[str, Any]) -> list[int] | str:
        """Token ids, or why there are none."""
        try:
            prompt = self.renderer.encode_prompt(item["prompt"])
            ids = prompt + self.renderer.encode_completion(item["prompt"], {"role": "assistant", "content": item["completion"]})
        except UserError as error:
            return str(error)
        longest = self.scorer.longest
        return f"{len(ids)} tokens; the reward model reads at most {longest}" if longest and len(ids) > longest else ids


def _outcome(score: float | str, seconds: float) -> Outcome:
    if isinstance(score, str):
        return Outcome(OutcomeKind.ERROR, detail=score, seconds=seconds)
    if not math.isfinite(score):
        return Outcome(OutcomeKind.ERROR, detail=f"the reward model said {score}", seconds=seconds)
    return Outcome(OutcomeKind.SCORE, score, seconds=seconds)
