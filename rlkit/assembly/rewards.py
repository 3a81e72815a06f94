"""The rewards of a recipe: those in worker processes, and reward models on the trainer's own device."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from rlkit.assembly.context import BuildContext, require
from rlkit.config.eval_section import list_scored_rewards
from rlkit.config.recipe import ENVIRONMENT, Recipe
from rlkit.data.renderer import Renderer
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import TRUST, RewardSettings
from rlkit.rollout.environment_reward import score_episodes
from rlkit.rollout.model_reward import ModelReward
from rlkit.runtime.ranks import Ranks


def list_in_process_rewards(recipe: Recipe) -> list[str]:
    """Names of the rewards that run in this process."""
    return [name for name, reward in list_scored_rewards(recipe).items() if reward.path in ("reward_model", ENVIRONMENT)]


def load_reward_models(context: BuildContext, rewards: RewardClient, pause_rollout: Callable[[], AbstractContextManager[None]]) -> None:
    """Loads the rewards that run in this process; reward models each with a phase of its own on the device: in `pause_rollout`."""
    from rlkit.engines.classifier import Classifier
    from rlkit.engines.loading import load_config

    recipe, what = context.recipe, "the reward model"
    for name in list_in_process_rewards(recipe):
        if name == ENVIRONMENT:
            rewards.in_process[name] = score_episodes
            continue
        args = list_scored_rewards(recipe)[name].args
        path, code = str(args["model"]), {"offline": recipe.offline, "trust_remote_code": args.get(TRUST, False)}
        load_config(path, what, **code)  # before the tokenizer, which reads it too and would be blamed for its faults
        model = Classifier(path, context.dtype, device=context.ranks.device, tokens_per_micro_batch=recipe.tokens_per_micro_batch, **code)
        rewards.in_process[name] = ModelReward(Renderer(path, what=what, **code), model, pause_rollout).score


def build_reward_settings(recipe: Recipe, ranks: Ranks) -> RewardSettings:
    """With the number of workers of this rank."""
    settings = require(recipe.rewarding)
    workers = settings.workers or max(1, (os.cpu_count() or 1) * ranks.tp_size // ranks.local_world)
    return settings.model_copy(update={"workers": workers})
