"""What a launcher runs: its own keys, the recipe, and the command of every rank."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlkit import run
from rlkit.cli.multirun import run_sweep
from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config, list_groups, quote
from rlkit.config.recipe import Recipe
from rlkit.config.sections import LaunchSection
from rlkit.config.suggestions import suggest
from rlkit.errors import UserError
from rlkit.runtime.signals import StopRequest

FORWARDED_PREFIXES = ("RLKIT_", "HF_", "NCCL_", "GLOO_", "VLLM_", "TORCH_", "WANDB_")  # of the variables that go to the nodes
FORWARDED_NAMES = ("OMP_NUM_THREADS", "CUDA_LAUNCH_BLOCKING", "NO_COLOR", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class LaunchSpec:
    """A run as every rank gets it."""

    recipe: Recipe
    folder: Path  # of the run, absolute
    arguments: list[str]  # of rlkit.run

    @property
    def settings(self) -> LaunchSection:
        return self.recipe.launch

    def build_command(self, python: str, first: bool) -> list[str]:
        """The command of a rank. A restart (not `first`) continues the run, whatever the recipe's `resume` is."""
        return [python, "-m", "rlkit.run", *self.arguments, *([] if first else ["resume=auto"])]

    def collect_environment(self) -> dict[str, str]:
        """The environment variables of this process that the ranks get."""
        names = {*FORWARDED_NAMES, *self.settings.env}
        return {k: v for k, v in os.environ.items() if k in names or k.startswith(FORWARDED_PREFIXES)}


def parse_launch(arguments: list[str], module: str = "launch.local") -> LaunchSpec | int:
    """The spec, or an exit code where nothing is to be launched here (--help, --cfg, dry_run, --multirun). Raises UserError.

    module: the launcher, which --multirun starts for each of its jobs.
    """
    arguments = [expand_key(argument) for argument in arguments]
    flags, overrides, extra = run.parse_arguments(arguments)
    if "--multirun" in flags:
        return run_sweep(overrides, extra, module)
    if flags:
        return run.main(arguments)
    config = compose_config(overrides, extra)
    recipe = recipes.read_recipe(config)
    if recipe.dry_run:
        return print_plan(arguments, recipe.launch.nodes * (recipe.launch.gpus_per_node or recipe.launch.workers_per_node))
    folder = Path(recipe.output_dir or f"runs/{recipe.recipe}/{time.strftime('%Y-%m-%d_%H-%M-%S')}").expanduser().absolute()
    return LaunchSpec(recipe, folder, [*arguments, f"output_dir={quote(folder)}"])


def print_plan(arguments: list[str], ranks: int) -> int:
    """Prints the plan for so many ranks; returns the exit code. WORLD_SIZE is set only for that time."""
    if "WORLD_SIZE" in os.environ:
        return run.main(arguments)
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        return run.main(arguments)
    finally:
        del os.environ["WORLD_SIZE"]


def expand_key(argument: str) -> str:
    """nodes=2 -> launch.nodes=2. Raises UserError for a key that is in neither the launch section nor the recipe."""
    key, equals, _ = argument.partition("=")
    if not equals or not key.isidentifier():
        return argument
    if key in LaunchSection.model_fields:
        return f"launch.{argument}"
    known = {*Recipe.model_fields, *list_groups()}
    if key not in known:
        raise UserError(f"unknown key {key}{suggest(key, {*known, *LaunchSection.model_fields})}")
    return argument


def run_launcher(launch: Callable[[LaunchSpec], int]) -> None:
    """Runs a launcher with the arguments of this process, prints its errors as rlkit.run does, and exits."""
    arguments = sys.argv[1:]
    StopRequest().install()  # until the launcher installs its own handler

    def run_all() -> int:
        main = sys.modules["__main__"].__spec__
        spec = parse_launch(arguments, main.name if main else "launch.local")
        return spec if isinstance(spec, int) else launch(spec)

    run.exit_process(run.handle_errors(run_all, arguments))
