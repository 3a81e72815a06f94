"""The algorithms, by name: those that sample, and the offline ones. One file each; a new one is a file and a line in its table."""

from __future__ import annotations

from rlkit.algorithms.base import Algorithm, Needs, Peers, State
from rlkit.algorithms.dpo import DPO
from rlkit.algorithms.grpo import GRPO
from rlkit.algorithms.kto import KTO
from rlkit.algorithms.objective import CriticObjective, GroupObjective, Objective
from rlkit.algorithms.offline import OfflineAlgorithm, OfflineObjective
from rlkit.algorithms.opd import OPD
from rlkit.algorithms.ppo import PPO
from rlkit.algorithms.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from rlkit.algorithms.remax import ReMax
from rlkit.algorithms.reward_model import RewardModel
from rlkit.algorithms.rloo import RLOO
from rlkit.algorithms.sft import SFT

ALGORITHMS: dict[str, type[Objective]] = {
    "grpo": GRPO,
    "rloo": RLOO,
    "remax": ReMax,
    "reinforce_pp": ReinforcePP,
    "reinforce_pp_baseline": ReinforcePPBaseline,
    "ppo": PPO,
    "opd": OPD,
}

OFFLINE: dict[str, type[OfflineObjective]] = {
    "dpo": DPO,
    "kto": KTO,
    "sft": SFT,
    "reward_model": RewardModel,
}

__all__ = [
    "ALGORITHMS",
    "OFFLINE",
    "Algorithm",
    "CriticObjective",
    "GroupObjective",
    "Needs",
    "Objective",
    "OfflineAlgorithm",
    "Peers",
    "State",
]
