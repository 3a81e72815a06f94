"""A reward model as a reward: `rewards: {rm: {path: reward_model, args: {model: FOLDER}}}`.

It shares the device with the policy, so it runs in the process of the trainer, in a phase of its own after sampling; the other rewards run
meanwhile in their processes. Prompt and completion are written by the model's own chat template, as one finished conversation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from rlkit.data.messages import Message
from rlkit.data.renderer import Renderer, TextOrChat
from rlkit.engines.base import Offloadable
from rlkit.errors import UserError
from rlkit.rewarding.outcome import Outcome, OutcomeKind


class ScoringModel(Offloadable, Protocol):
    """The model, as ModelReward uses it."""

    longest: int | None  # tokens that the model can read

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]: ...


class ModelReward:
    """Scores samples together; `pause_rollout` opens a phase in which the device is free for the model."""

    def __init__(
        self, renderer: Renderer, model: ScoringModel, pause_rollout: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.renderer, self.model, self.pause_rollout = renderer, model, pause_rollout

    def score(self, items: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """An outcome for each item (prompt, completion), in their order. Unreadable items and non-finite scores are errors."""
        started = time.perf_counter()
        rows = [self._encode(item) for item in items]
        readable = [row for row in rows if not isinstance(row, str)]
        with self.pause_rollout():
            self.model.reload()
            try:
                scores = iter(self.model.scores(readable))
            finally:
                self.model.offload()
        seconds = (time.perf_counter() - started) / max(len(items), 1)
        return [build_outcome(row if isinstance(row, str) else next(scores), seconds) for row in rows]

    def _encode(self, item: Mapping[str, Any]) -> list[int] | str:
        """Token ids, or why there are none."""
        try:
            before, reply = split_conversation(item)
            ids = self.renderer.encode_prompt(before) + self.renderer.encode_completion(before, reply)
        except UserError as error:
            return str(error)
        longest = self.model.longest
        return f"{len(ids)} tokens; the reward model reads at most {longest}" if longest and len(ids) > longest else ids


def split_conversation(item: Mapping[str, Any]) -> tuple[TextOrChat, Message]:
    """A sample as what was asked and the last reply; of an episode all its messages."""
    *before, last = item.get("conversation") or [{}]
    if last.get("role") == "assistant" and before:
        return before, last
    return item["prompt"], {"role": "assistant", "content": item["completion"]}


def build_outcome(score: float | str, seconds: float) -> Outcome:
    """`score`: or why there is none."""
    if isinstance(score, str):
        return Outcome(OutcomeKind.ERROR, detail=score, seconds=seconds)
    if not math.isfinite(score):
        return Outcome(OutcomeKind.ERROR, detail=f"the reward model returned {score}", seconds=seconds)
    return Outcome(OutcomeKind.SCORE, score, seconds=seconds)
