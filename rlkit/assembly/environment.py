"""The environment of a recipe: its sessions in worker processes, and how episodes with it are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlkit.assembly.context import require
from rlkit.config.recipe import ENVIRONMENT, Recipe
from rlkit.data.renderer import Renderer
from rlkit.data.tool_calls import HERMES, TurnReader
from rlkit.data.turn_bridge import TurnBridge
from rlkit.environments.client import SessionClient
from rlkit.environments.job import EnvironmentKind
from rlkit.environments.spec import EnvironmentSettings
from rlkit.errors import UserError
from rlkit.rollout.episodes import EpisodeSettings
from rlkit.runtime.ranks import Ranks

CHARACTERS_PER_TOKEN = 8  # of an answer that leaves its worker; what is left is cut by its tokens
Kinds = Mapping[str, EnvironmentKind]


def start_environment(recipe: Recipe) -> SessionClient:
    """Starts the processes of the environment, which load it meanwhile; recipe.environment.path is set."""
    section = recipe.environment
    assert section.path is not None
    settings = EnvironmentSettings(
        path=section.path,
        args=section.args,
        timeout=section.timeout,
        max_observation=CHARACTERS_PER_TOKEN * section.max_observation_tokens,
    )
    return SessionClient(settings, require(recipe.rewarding))


def build_episodes(recipe: Recipe, renderer: Renderer, client: SessionClient | None, ranks: Ranks) -> EpisodeSettings | None:
    """How episodes are sampled; None without an environment. client: on the leaders of tensor-parallel groups.

    Waits until the environment is loaded. Raises UserError where it cannot be, and as check_environment.
    """
    section = recipe.environment
    if section.path is None:
        return None
    kinds: Kinds = ranks.broadcast_tp(client.wait_until_ready() if client else {})
    check_reward(recipe, kinds)
    bridge, reader = build_turns(recipe, renderer, kinds)
    limits = [kind.sessions for kind in kinds.values() if kind.sessions is not None]
    limits += [] if section.sessions is None else [max(1, section.sessions // ranks.tp_group_count)]
    return EpisodeSettings(
        client=client,
        encoder=renderer,
        bridge=bridge,
        reader=reader,
        max_prompt_tokens=recipe.max_prompt_tokens,
        max_turns=section.max_turns,
        lockstep=section.lockstep,
        sessions=min(limits, default=None),
        turn_weight=weigh_turns(recipe),
    )


def build_turns(recipe: Recipe, renderer: Renderer, kinds: Kinds) -> tuple[TurnBridge, TurnReader]:
    """What writes and reads the turns. Raises UserError where the chat template does not fit the environment."""
    bridge = TurnBridge(renderer, recipe.environment.max_observation_tokens)
    for kind in kinds.values():
        bridge.check(list((kind.tools or {}).values()))
    return bridge, TurnReader(renderer, recipe.environment.parser if any(kind.tools for kind in kinds.values()) else HERMES)


def weigh_turns(recipe: Recipe) -> float:
    """The weight of the environment's reward, which its parts of single turns share; 0 where the reward is no sum of scores as they are."""
    rewarding = require(recipe.rewarding)
    adds_up = rewarding.combine == "sum" and rewarding.normalise == "none"
    return recipe.all_rewards[ENVIRONMENT].weight if adds_up else 0.0


def check_reward(recipe: Recipe, kinds: Kinds) -> None:
    """Raises UserError where an environment has no reward, and no other reward counts."""
    without = [f"{name} " if name else "" for name, kind in kinds.items() if not kind.has_reward]
    if without and not any(reward.counts for name, reward in recipe.all_rewards.items() if name != ENVIRONMENT):
        raise UserError(
            f"environment.path={recipe.environment.path}: the environment {without[0]}gives no reward (a class of tools: get_reward), and "
            "no other reward counts; set rewards, such as rewards.accuracy.path=accuracy"
        )


def describe_environment(recipe: Recipe) -> list[tuple[str, str]]:
    """A line of the plan; none without an environment."""
    section = recipe.environment
    if section.path is None:
        return []
    path = section.path if isinstance(section.path, str) else ", ".join(f"{name}: {path}" for name, path in section.path.items())
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    baseline = "; the greedy episode of a prompt is its baseline, so it must go alike with the same seed"
    return [("environment", f"{path}, at most {section.max_turns} turns an episode{baseline * needs.greedy}")]


def describe_loaded(recipe: Recipe, renderer: Renderer | None) -> Iterator[tuple[str, str]]:
    """What a dry run finds: that the environment loads, its tools, and how calls are read. renderer: where the tokenizer is on this disk.

    Raises UserError for what a run would refuse.
    """
    if recipe.environment.path is None:
        return
    yield from describe_environment(recipe)
    with start_environment(recipe) as client:
        kinds = client.wait_until_ready()
    check_reward(recipe, kinds)
    parser = f"; calls are read by {build_turns(recipe, renderer, kinds)[1].parser}" if renderer else ""
    for name, kind in kinds.items():
        tools = f"tools: {', '.join(kind.tools)}{parser}" if kind.tools else "text"
        yield f"it answers {name}".rstrip(), f"{tools} ({kind.shape})"
