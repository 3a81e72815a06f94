"""The reward of an environment as one of the rewards, `environment`: what its episode ended with, read in the trainer's process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.scores import LARGEST_SCORE


def score_episodes(items: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """An outcome for each item, in their order. An episode whose session was lost is an error; one without a reward is not applicable."""
    return [score_episode(item) for item in items]


def score_episode(item: Mapping[str, Any]) -> Outcome:
    reward, failure, metrics = item["environment_reward"], item["environment_failure"], item["environment_metrics"]
    if failure is not None:
        return Outcome(OutcomeKind.ERROR, detail=failure)
    if reward is None:
        return Outcome(OutcomeKind.NOT_APPLICABLE, metrics=metrics)
    if not math.isfinite(reward) or abs(reward) > LARGEST_SCORE:
        return Outcome(OutcomeKind.ERROR, detail=f"the environment's reward is {reward}", metrics=metrics)
    return Outcome(OutcomeKind.SCORE, float(reward), metrics=metrics)
