"""The algorithms, by name. One file each; a new one is a file and a line in this table."""

from __future__ import annotations

from rlkit.algorithms.base import Algorithm, Needs, Peers, State
from rlkit.algorithms.grpo import GRPO

ALGORITHMS = {"grpo": GRPO}

__all__ = ["ALGORITHMS", "Algorithm", "Needs", "Peers", "State"]
