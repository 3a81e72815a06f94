"""Evaluates a model without training it, as a run evaluates: the same held-out rows, sampling, seeds and rewards, in one process.

The engine reads the weights from the model's folder; a run sends it the same weights. Left out: the evaluation of offline algorithms, whose
loss needs a trainer and a reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.assembly import machine, plan
from rlkit.assembly.base_model import build_renderer, check_models, find_dtype, locate_model, replace_path
from rlkit.assembly.build import start_rewards
from rlkit.assembly.context import BuildContext
from rlkit.assembly.datasets import open_sources
from rlkit.assembly.environment import build_episodes, start_environment
from rlkit.assembly.eval_sets import TEST, build_evaluations, read_sets
from rlkit.assembly.models import build_engine
from rlkit.assembly.rewards import load_reward_models
from rlkit.config.recipe import Recipe
from rlkit.data.stream import Prompt
from rlkit.errors import Stopped, UserError
from rlkit.metrics import mean_interval, mean_of
from rlkit.report import Report
from rlkit.report.folder import RunFolder
from rlkit.rewarding.client import RewardClient
from rlkit.rollout import records
from rlkit.rollout.episodes import EpisodeSettings
from rlkit.rollout.evaluation import Evaluation
from rlkit.rollout.sampler import Sampler
from rlkit.runtime.library_settings import map_large_blocks
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.types import Group

RESULT = "result.json"
Interval = tuple[float, float]
FROM_DISK = {"load_format": "auto"}  # vLLM reads the weights itself; in a run it waits for those of the trainer


@dataclass(frozen=True)
class SetResult:
    """What was found on one set. Intervals are those of 95 %; of `samples` completions a row, rows are what is independent."""

    rows: int
    samples: int  # completions of a row
    greedy: bool
    accuracy: float  # of several samples avg@k
    accuracy_interval: Interval
    reward: float
    reward_interval: Interval
    truncated: float  # share of completions that were cut at the limit of tokens
    failed: int  # completions that a reward could not grade; they are in none of the means


@dataclass(frozen=True)
class EvaluationResult(SetResult):
    """What an evaluation found: on data.test, or where there is none on the first of eval.sets; and on each set by name."""

    model: str
    step: int | None  # of the run whose model this is
    metrics: dict[str, float]  # as in the row of a run: eval/accuracy, ...
    folder: str
    sets: dict[str, SetResult]


def evaluate_model(
    recipe: Recipe, text: str, folder: Path, *, model: str, step: int | None, note: Callable[[str], None]
) -> EvaluationResult:
    """Evaluates the model at recipe.model.path on data.test and eval.sets; writes samples.jsonl, result.json and recipe.yaml (`text`) into
    a new folder.

    model, step: what the result calls it. note: gets lines of information. Raises UserError, and Stopped where a stop was requested.
    """
    check_evaluation(recipe, folder)
    recipe = prepare_recipe(recipe)
    if plan.is_large_on_host(recipe):
        map_large_blocks()
    machine.prepare_gpu(recipe)
    stopping = StopRequest()
    stopping.install()
    with ExitStack() as stack:
        check_models(recipe)
        plan.describe_sandbox(recipe)
        ranks = Ranks()
        rewards = stack.enter_context(start_rewards(recipe, ranks, folder))
        environment = stack.enter_context(start_environment(recipe)) if recipe.environment.path else None
        sources = open_sources(recipe, "prompts", ("test",))
        located = locate_model(recipe, find_dtype(recipe, ranks.device), ranks.main)
        recipe = replace_path(recipe, located)
        renderer = build_renderer(recipe, located.path)
        held_out = read_sets(recipe, renderer, sources, note)
        rewards.warn, rewards.steps, rewards.finished_steps = note, recipe.steps or 0, max((step or 0) - 1, 0)
        rewards.wait_until_ready()
        log = RunFolder(folder)
        stack.callback(log.close)
        log.write_text("recipe.yaml", text)
        silent = stack.enter_context(Report(folder, plan=[], title="", steps=0, main=False))
        context = BuildContext(recipe, ranks, folder, located.path, renderer, silent, PhaseTimer(lambda phase: None), stopping)
        episodes = build_episodes(recipe, renderer, environment, ranks)
        evaluations = prepare_evaluations(context, rewards, episodes, held_out, stack, step, note)
        stopping.deferred = True
        row, results = run_evaluations(evaluations, log, step or 0, cache(renderer.decode))
        named = {name: result for name, result in results.items() if name != TEST}
        main = asdict(next(iter(results.values())))
        result = EvaluationResult(**main, model=model, step=step, metrics=row, folder=str(folder), sets=named)
        log.append_metrics(step or 0, row)
        log.write_json(RESULT, asdict(result))
    return result


def run_evaluations(
    evaluations: Sequence[Evaluation], log: RunFolder, step: int, decode: Callable[[Sequence[int]], str]
) -> tuple[dict[str, float], dict[str, SetResult]]:
    """The metrics of all sets, and the result of each by name; writes their samples. Raises Stopped where a stop was requested."""
    row: dict[str, float] = {}
    results = {}
    for evaluation in evaluations:
        found = evaluation.run()
        if found is None:
            raise Stopped("stopped before all rows were evaluated; run the same command to start again")
        metrics, groups = found
        samples, split = [(s, group.answer) for group in groups for s in group.samples], records.name_split(evaluation.name)
        log.append_samples(step, [records.build_sample_row(s, answer, None, decode, split) for s, answer in samples])
        results[evaluation.name] = summarize_evaluation(evaluation, metrics, groups)
        row |= metrics
    return row, results


def check_evaluation(recipe: Recipe, folder: Path) -> None:
    """Raises UserError for a recipe without sampling, rewards or held-out rows, for a folder in use, and under a launcher."""
    if recipe.offline_algorithm:
        raise UserError(
            f"algorithm={recipe.algorithm.name} samples nothing, so there is nothing to reward; name a recipe with rewards: recipe=NAME, "
            "such as grpo_math, or grpo with data.test=FILE"
        )
    if not recipe.data.test and not recipe.eval.sets:
        raise UserError("neither data.test nor eval.sets is set, so there are no rows to evaluate on; set data.test=FILE")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; an evaluation has a folder of its own: choose another output_dir")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("rlkit eval is one process; start it without a launcher (engine.vllm.tensor_parallel_size=2 gives it two GPUs)")


def prepare_recipe(recipe: Recipe) -> Recipe:
    """For an engine that is alone on its device and reads its weights from the disk."""
    engine: dict[str, Any] = {"lora_sync": "merged", "tensor_parallel": 1, "sequence_parallel": 1, "memory": "sleep_and_offload"}
    engine["vllm"] = {**FROM_DISK, **recipe.engine.vllm}
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update=engine)})


def prepare_evaluations(
    context: BuildContext,
    rewards: RewardClient,
    episodes: EpisodeSettings | None,
    held_out: Mapping[str, Sequence[Prompt]],
    stack: ExitStack,
    step: int | None,
    note: Callable[[str], None],
) -> list[Evaluation]:
    """The evaluations of a run, with an engine that holds the weights of the folder. On leaving `stack` the engine is closed."""
    recipe = context.recipe
    load_reward_models(context, rewards, nullcontext)
    engine = build_engine(context, names=[])
    stack.callback(engine.close)
    engine.version = step or 0
    sampler = Sampler(engine, rewards, context.renderer, context.stopping, recipe.seed, context.ranks, episodes)
    return build_evaluations(context, sampler, held_out, note)


def summarize_evaluation(evaluation: Evaluation, row: Mapping[str, float], groups: Sequence[Group]) -> SetResult:
    """The result of scored completions. row: the metrics of them."""
    raw = [[reward for s in group.samples if (reward := records.get_raw_reward(s)) is not None] for group in groups]
    own = {name.removeprefix(evaluation.prefix): value for name, value in row.items()}
    return SetResult(
        rows=len(groups),
        samples=evaluation.samples,
        greedy=evaluation.sampling.greedy,
        accuracy=own["accuracy"],
        accuracy_interval=(own["accuracy_low"], own["accuracy_high"]),
        reward=own["reward"],
        reward_interval=mean_interval([mean_of(rewards).value for rewards in raw if rewards]),
        truncated=own["completions/clipped_ratio"],
        failed=sum(s.reward is None for group in groups for s in group.samples),
    )
