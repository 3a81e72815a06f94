"""Rewards: plain functions, run in worker processes that can hang, die and be replaced without harm to the run."""

from __future__ import annotations

from rlkit.rewarding.judge import RewardClient
from rlkit.rewarding.outcome import Outcome, OutcomeKind, Verdict
from rlkit.rewarding.spec import RewardSettings, RewardSpec, resolve

__all__ = ["Outcome", "OutcomeKind", "RewardClient", "RewardSettings", "RewardSpec", "Verdict", "resolve"]
