"""What a launcher was asked for: its own words, the recipe, and the command that every rank runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlkit import run
from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config, list_groups, quote
from rlkit.config.recipe import Recipe, suggest
from rlkit.config.sections import LaunchSection
from rlkit.errors import UserError
from rlkit.runtime.signals import StopRequest

PASSED_ON = ("RLKIT_", "HF_", "NCCL_", "GLOO_", "VLLM_", "TORCH_", "WANDB_")  # beginnings of the names that go to the nodes
PASSED_NAMES = ("OMP_NUM_THREADS", "CUDA_LAUNCH_BLOCKING", "NO_COLOR", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Order:
    """A run, as every rank is told of it."""

    recipe: Recipe
    folder: Path  # of the run, absolute
    words: list[str]  # arguments of rlkit.run

    @property
    def settings(self) -> LaunchSection:
        return self.recipe.launch

    def command(self, python: str, first: bool) -> list[str]:
        """Of a rank. A restart goes on, whatever `resume` says of a folder in use."""
        return [python, "-m", "rlkit.run", *self.words, *([] if first else ["resume=auto"])]

    def environment(self) -> dict[str, str]:
        """The variables of this process that go to the ranks."""
        names = {*PASSED_NAMES, *self.settings.env}
        return {k: v for k, v in os.environ.items() if k in names or k.startswith(PASSED_ON)}


def read(arguments: list[str]) -> Order | int:
    """The order; or an exit code where nothing is to be launched (--help, --cfg, dry_run). Raises UserError."""
    words = [full(word) for word in arguments]
    flags, overrides, extra = run.parse_arguments(words)
    if "--multirun" in flags:
        raise UserError("--multirun starts its jobs one after the other by `python -m rlkit.run`; launch each with its own command here")
    if flags:
        return run.main(words)
    config = compose_config(overrides, extra)
    recipe = recipes.read_recipe(config)
    if recipe.dry_run:
        return planned(words, recipe.launch.nodes * (recipe.launch.gpus_per_node or recipe.launch.workers_per_node))
    folder = Path(recipe.output_dir or f"runs/{recipe.recipe}/{time.strftime('%Y-%m-%d_%H-%M-%S')}").expanduser().absolute()
    return Order(recipe, folder, [*words, f"output_dir={quote(folder)}"])


def planned(words: list[str], ranks: int) -> int:
    """The plan of so many ranks, told; an exit code. They are in the environment only meanwhile."""
    if "WORLD_SIZE" in os.environ:
        return run.main(words)
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        return run.main(words)
    finally:
        del os.environ["WORLD_SIZE"]


def full(word: str) -> str:
    """nodes=2 as launch.nodes=2. Raises UserError for a key that neither the launcher nor the recipe has."""
    key, equals, _ = word.partition("=")
    if not equals or not key.isidentifier():
        return word
    if key in LaunchSection.model_fields:
        return f"launch.{word}"
    known = {*Recipe.model_fields, *list_groups()}
    if key not in known:
        raise UserError(f"unknown key {key}{suggest(key, {*known, *LaunchSection.model_fields})}")
    return word


def door(launched: Callable[[Order], int]) -> None:
    """Runs a launcher with the arguments of this process, tells its errors as rlkit.run does, and leaves."""
    arguments = sys.argv[1:]
    StopRequest().install()  # until the launcher listens itself

    def whole() -> int:
        order = read(arguments)
        return order if isinstance(order, int) else launched(order)

    run.exit_process(run.handle_errors(whole, arguments))
