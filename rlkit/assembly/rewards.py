"""The rewards of a recipe: those of worker processes, and reward models on the trainer's own device."""

from __future__ import annotations

import os

from rlkit.assembly.base_model import dtype_of
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.engines.placement import Colocated
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSettings
from rlkit.rollout.model_reward import ModelReward
from rlkit.runtime.ranks import Ranks


def in_process_rewards(recipe: Recipe) -> list[str]:
    """Names of the rewards that run in this process."""
    return [name for name, reward in recipe.rewards.items() if reward.path == "reward_model"]


def load_reward_models(recipe: Recipe, judge: RewardClient, placement: Colocated, ranks: Ranks) -> None:
    """Loads the reward models, each with a phase of its own on the device."""
    from rlkit.engines.classifier import Classifier

    for name in in_process_rewards(recipe):
        path = str(recipe.rewards[name].args["model"])
        scorer = Classifier(
            path,
            dtype_of(recipe, ranks.device),
            device=ranks.device,
            offline=recipe.offline,
            tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        )
        judge.in_process[name] = ModelReward(Renderer(path, offline=recipe.offline), scorer, placement.judging).judge


def reward_settings(recipe: Recipe, ranks: Ranks) -> RewardSettings:
    workers = recipe.rewarding.workers or max(1, (os.cpu_count() or 1) * ranks.tp_size // ranks.local_world)
    return recipe.rewarding.model_copy(update={"workers": workers})
