"""Evaluates a model without training it, as a run evaluates: the same held-out rows, sampling, seeds and rewards, in one process.

The engine reads the weights from the model's folder; a run sends it the same weights. Left out: the evaluation of offline algorithms, whose
loss needs a trainer and a reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.assembly import machine, plan
from rlkit.assembly.base_model import build_renderer, check_models, find_dtype, locate_model, replace_path
from rlkit.assembly.build import start_rewards
from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.datasets import build_readers, build_row_set
from rlkit.assembly.environment import build_episodes, start_environment
from rlkit.assembly.models import build_engine
from rlkit.assembly.online import build_evaluation
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
from rlkit.types import Group, Sampling

RESULT = "result.json"
Interval = tuple[float, float]
FROM_DISK = {"load_format": "auto"}  # vLLM reads the weights itself; in a run it waits for those of the trainer


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found. Intervals are those of 95 %; of `samples` completions a row, rows are what is independent."""

    model: str
    step: int | None  # of the run whose model this is
    rows: int
    samples: int  # completions of a row; 1: greedy
    accuracy: float
    accuracy_interval: Interval
    reward: float
    reward_interval: Interval
    truncated: float  # share of completions that were cut at max_completion_tokens
    failed: int  # completions that a reward could not grade; they are in none of the means
    metrics: dict[str, float]  # as in the row of a run: eval/accuracy, ...
    folder: str


def evaluate_model(
    recipe: Recipe, text: str, folder: Path, *, model: str, step: int | None, note: Callable[[str], None]
) -> EvaluationResult:
    """Evaluates the model at recipe.model.path on data.test; writes samples.jsonl, result.json and recipe.yaml (`text`) into a new folder.

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
        readers = build_readers(recipe, "prompts", "test", recipe.data.test or {})
        located = locate_model(recipe, find_dtype(recipe, ranks.device), ranks.main)
        recipe = replace_path(recipe, located)
        renderer = build_renderer(recipe, located.path)
        held_out = build_row_set(recipe, renderer, "prompts", readers)
        prompts, counts = held_out.read_all(recipe.eval.problems)
        if skipped := held_out.describe_skips(counts):
            note(skipped)
        rewards.warn, rewards.steps, rewards.finished_steps = note, recipe.steps or 0, max((step or 0) - 1, 0)
        rewards.wait_until_ready()
        log = RunFolder(folder)
        stack.callback(log.close)
        log.write_text("recipe.yaml", text)
        silent = stack.enter_context(Report(folder, plan=[], title="", steps=0, main=False))
        context = BuildContext(recipe, ranks, folder, located.path, renderer, silent, PhaseTimer(lambda phase: None), stopping)
        episodes = build_episodes(recipe, renderer, environment, ranks)
        evaluation = prepare_evaluation(context, rewards, episodes, prompts, stack, step)
        stopping.deferred = True
        found = evaluation.run()
        if found is None:
            raise Stopped("stopped before all rows were evaluated; run the same command to start again")
        row, groups = found
        decode = cache(renderer.decode)
        samples = [(s, group.answer) for group in groups for s in group.samples]
        log.append_samples(step or 0, [records.build_sample_row(s, answer, None, decode, "test") for s, answer in samples])
        result = summarize_evaluation(evaluation, row, groups, model=model, step=step, folder=str(folder))
        log.append_metrics(step or 0, row)
        log.write_json(RESULT, asdict(result))
    return result


def check_evaluation(recipe: Recipe, folder: Path) -> None:
    """Raises UserError for a recipe without sampling, rewards or held-out rows, for a folder in use, and under a launcher."""
    if recipe.offline_algorithm:
        raise UserError(
            f"algorithm={recipe.algorithm.name} samples nothing, so there is nothing to reward; name a recipe with rewards: recipe=NAME, "
            "such as grpo_math, or grpo with data.test=FILE"
        )
    if not recipe.data.test:
        raise UserError("data.test is not set, so there are no rows to evaluate on; set data.test=FILE")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; an evaluation has a folder of its own: choose another output_dir")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("rlkit eval is one process; start it without a launcher (engine.vllm.tensor_parallel_size=2 gives it two GPUs)")


def prepare_recipe(recipe: Recipe) -> Recipe:
    """For an engine that is alone on its device and reads its weights from the disk."""
    engine: dict[str, Any] = {"lora_sync": "merged", "tensor_parallel": 1, "sequence_parallel": 1, "memory": "sleep_and_offload"}
    engine["vllm"] = {**FROM_DISK, **recipe.engine.vllm}
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update=engine)})


def prepare_evaluation(
    context: BuildContext,
    rewards: RewardClient,
    episodes: EpisodeSettings | None,
    prompts: list[Prompt],
    stack: ExitStack,
    step: int | None,
) -> Evaluation:
    """The evaluation of a run, with an engine that holds the weights of the folder. On leaving `stack` the engine is closed."""
    recipe = context.recipe
    load_reward_models(context, rewards, nullcontext)
    engine = build_engine(context, names=[])
    stack.callback(engine.close)
    engine.version = step or 0
    sampler = Sampler(engine, rewards, context.renderer, context.stopping, recipe.seed, context.ranks, episodes)
    sampling = Sampling(**require(recipe.sampling).model_dump(), max_tokens=recipe.max_completion_tokens)
    return build_evaluation(context, sampler, prompts, sampling)


def summarize_evaluation(evaluation: Evaluation, row: dict[str, float], groups: Sequence[Group], **source: Any) -> EvaluationResult:
    """The result of scored completions. row: the metrics of them. source: model, step and folder of the result."""
    raw = [[reward for s in group.samples if (reward := records.get_raw_reward(s)) is not None] for group in groups]
    return EvaluationResult(
        rows=len(groups),
        samples=evaluation.samples,
        accuracy=row["eval/accuracy"],
        accuracy_interval=(row["eval/accuracy_low"], row["eval/accuracy_high"]),
        reward=row["eval/reward"],
        reward_interval=mean_interval([mean_of(rewards).value for rewards in raw if rewards]),
        truncated=row["eval/completions/clipped_ratio"],
        failed=sum(s.reward is None for group in groups for s in group.samples),
        metrics=row,
        **source,
    )
