"""The parts of an online run: engines, rewards, collector, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlkit.assembly import plan
from rlkit.assembly.base_model import dtype_of
from rlkit.assembly.common import build_roofline, build_schedule, build_trainer_run, fit_micro_batch
from rlkit.assembly.models import make_critic, make_engine, make_placement, make_policy, make_probe, make_reference
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.data.stream import Prompt, Stream
from rlkit.report import Report
from rlkit.rewarding.client import RewardClient
from rlkit.rollout.collector import Collector, Sampler
from rlkit.rollout.evaluation import Evaluation
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import Run
from rlkit.trainers.online import OnlineTrainer
from rlkit.types import Sampling
from rlkit.updates.online_update import OnlineUpdater


def build_online(
    recipe: Recipe,
    ranks: Ranks,
    folder: Path,
    judge: RewardClient,
    model_path: str,
    renderer: Renderer,
    train: Stream[Prompt],
    test: list[Prompt],
    report: Report,
    stopping: StopRequest,
) -> tuple[Run, Callable[[], None]]:
    """Loads the engines and puts the parts together; the second part ends the rollout engine."""
    clock, dtype = PhaseTimer(report.show_phase), dtype_of(recipe, ranks.device)
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    waits = recipe.algorithm.count_critic_warmup_updates(recipe.steps, recipe.updates_per_step) if needs.values else 0
    report.show_phase("loading")
    policy = make_policy(recipe, model_path, dtype, ranks)
    if plan.mode(recipe) == "sleep_and_offload":
        policy.park()  # the rollout engine looks at what is free
    engine = make_engine(recipe, model_path, dtype, policy.names, renderer, ranks)
    reference = make_reference(recipe, policy, model_path, dtype, ranks) if needs.reference else None
    sampling = Sampling(**recipe.sampling.model_dump(), max_tokens=recipe.max_completion_tokens)
    sampler = Sampler(engine, judge, renderer, stopping, recipe.seed, ranks)
    critic = make_critic(recipe, model_path, dtype, ranks) if needs.values else None
    learning = OnlineUpdater(
        policy=policy,
        reference=reference,
        critic=critic,
        critic_schedule=build_schedule(recipe, recipe.algorithm.critic_lr) if needs.values else None,
        policy_waits=waits,
        algorithm=recipe.algorithm,
        schedule=build_schedule(recipe, waits=waits),
        probe=make_probe(recipe, policy, engine, dtype, sampling),
        ranks=ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        fixed_length=recipe.max_completion_tokens,
        max_skipped_updates=recipe.engine.max_skipped_updates,
    )
    placement = make_placement(recipe, policy, engine, (reference, critic), clock)
    learners = [policy, *([critic] if critic else [])]
    with placement.train():
        learning = replace(learning, tokens_per_micro_batch=fit_micro_batch(recipe, learners, ranks, folder, report))
    trainer = OnlineTrainer(
        placement=placement,
        collector=build_collector(recipe, sampler, train, ranks, sampling),
        evaluation=build_evaluation(recipe, sampler, test, ranks, sampling) if test else None,
        learning=learning,
        remembered=recipe.algorithm.init_state(),
        report=report,
        clock=clock,
        ranks=ranks,
        decode=renderer.decode,
        floors=build_roofline(recipe, ranks),
    )
    export = partial(policy.export, adapter=recipe.checkpoint.export == "adapter")
    run = build_trainer_run(recipe, trainer, learners, export, renderer, folder, ranks, report, clock, stopping)
    return replace(run, training=trainer.placement.train), engine.close


def build_collector(recipe: Recipe, sampler: Sampler, train: Stream[Prompt], ranks: Ranks, sampling: Sampling) -> Collector:
    needs, cut = recipe.algorithm.needs(recipe.updates_per_step), recipe.mask_truncated_completions
    grade = "accuracy" if "accuracy" in recipe.rewards and recipe.rewards["accuracy"].weight else None
    sizes = (recipe.prompts_per_step, recipe.samples_per_prompt)
    return Collector(sampler, train, ranks, *sizes, sampling, needs.greedy, needs.max_refills, grade, cut)


def build_evaluation(recipe: Recipe, sampler: Sampler, test: list[Any], ranks: Ranks, sampling: Sampling) -> Evaluation:
    greedy = Sampling(temperature=0.0, max_tokens=sampling.max_tokens)
    graded_by = "accuracy" if "accuracy" in recipe.rewards else next(iter(recipe.rewards))
    samples = recipe.eval.samples
    return Evaluation(sampler, test, ranks, samples, sampling if samples > 1 else greedy, graded_by)
