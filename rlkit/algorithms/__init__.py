"""The algorithms, by name. One file each; a new one is a file and a line in this table."""

from __future__ import annotations

from rlkit.algorithms.base import Algorithm, Needs, Peers, State
from rlkit.algorithms.grpo import GRPO
from rlkit.algorithms.objective import GroupObjective, Objective
from rlkit.algorithms.ppo import PPO
from rlkit.algorithms.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from rlkit.algorithms.remax import ReMax
from rlkit.algorithms.rloo import RLOO

ALGORITHMS: dict[str, type[Objective]] = {
    "grpo": GRPO,
    "rloo": RLOO,
    "remax": ReMax,
    "reinforce_pp": ReinforcePP,
    "reinforce_pp_baseline": ReinforcePPBaseline,
    "ppo": PPO,
}

__all__ = ["ALGORITHMS", "Algorithm", "GroupObjective", "Needs", "Objective", "Peers", "State"]
