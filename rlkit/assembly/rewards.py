"""The rewards of a recipe: those in worker processes, and reward models on the trainer's own device."""

from __future__ import annotations

import os

from rlkit.assembly.context import BuildContext, require
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.engines.placement import Placement
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSettings
from rlkit.rollout.model_reward import ModelReward
from rlkit.runtime.ranks import Ranks


def list_in_process_rewards(recipe: Recipe) -> list[str]:
    """Names of the rewards that run in this process."""
    return [name for name, reward in require(recipe.rewards).items() if reward.path == "reward_model"]


def load_reward_models(context: BuildContext, rewards: RewardClient, placement: Placement) -> None:
    """Loads the reward models, each with a phase of its own on the device."""
    from rlkit.engines.classifier import Classifier

    recipe = context.recipe
    for name in list_in_process_rewards(recipe):
        path = str(require(recipe.rewards)[name].args["model"])
        model = Classifier(
            path,
            context.dtype,
            device=context.ranks.device,
            offline=recipe.offline,
            tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        )
        rewards.in_process[name] = ModelReward(Renderer(path, offline=recipe.offline), model, placement.pause_rollout).score


def build_reward_settings(recipe: Recipe, ranks: Ranks) -> RewardSettings:
    """With the number of workers of this rank."""
    settings = require(recipe.rewarding)
    workers = settings.workers or max(1, (os.cpu_count() or 1) * ranks.tp_size // ranks.local_world)
    return settings.model_copy(update={"workers": workers})
