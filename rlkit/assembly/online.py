"""The parts of an online run: engines, rewards, collector, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from rlkit.assembly import plan
from rlkit.assembly.common import build_roofline, build_schedule, build_trainer_run, fit_micro_batch
from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.eval_sets import build_evaluations, name_measure
from rlkit.assembly.models import (
    build_critic,
    build_engine,
    build_logprob_check,
    build_placement,
    build_policy,
    build_reference,
    build_teacher,
)
from rlkit.assembly.rewards import load_reward_models
from rlkit.config.eval_section import find_grader, list_second_opinions
from rlkit.data.stream import Prompt, Stream
from rlkit.engines.base import Critic, Policy, Scores
from rlkit.engines.placement import Colocated
from rlkit.rewarding.client import RewardClient
from rlkit.rollout.collector import Collector
from rlkit.rollout.episodes import EpisodeSettings
from rlkit.rollout.sampler import Sampler
from rlkit.rollout.second_opinion import SecondOpinion
from rlkit.trainers.loop import Run
from rlkit.trainers.online import OnlineTrainer
from rlkit.trainers.online_report import OnlineReport
from rlkit.types import Sampling
from rlkit.updates.online_update import OnlineUpdater


def build_online(
    context: BuildContext,
    rewards: RewardClient,
    episodes: EpisodeSettings | None,
    train: Stream[Prompt],
    held_out: Mapping[str, Sequence[Prompt]],
    stack: ExitStack,
) -> Run:
    """Loads the engines and puts the parts together. held_out: problems by set. On leaving `stack` the rollout engine is closed."""
    recipe, ranks = context.recipe, context.ranks
    context.report.show_phase("loading model")
    policy = build_policy(context)
    if plan.choose_mode(recipe) == "sleep_and_offload":
        policy.offload()  # the rollout engine measures what is free
    engine = build_engine(context, policy.names)
    stack.callback(engine.close)
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    reference = build_reference(context, policy) if needs.reference else None
    teacher = build_teacher(context) if needs.teacher else None
    critic = build_critic(context) if needs.values else None
    sampling = Sampling(**require(recipe.sampling).model_dump(), max_tokens=recipe.max_completion_tokens)
    updater = replace(build_updater(context, policy, reference, critic, sampling), teacher=teacher)
    placement = build_placement(context, policy, engine, (reference, teacher, critic))
    learners = [policy, *([critic] if critic else [])]
    with placement.train():
        updater = replace(updater, tokens_per_micro_batch=fit_micro_batch(context, learners))
    sampler = Sampler(engine, rewards, context.renderer, context.stopping, recipe.seed, ranks, episodes)
    collector = build_collector(context, sampler, train, sampling)
    trainer = OnlineTrainer(
        placement=placement,
        collector=collector,
        evaluations=build_evaluations(context, sampler, held_out, context.report.warn),
        updater=updater,
        algorithm_state=recipe.algorithm.init_state(),
        report=build_report(context, placement, collector, updater),
        timer=context.timer,
        ranks=ranks,
        measure=name_measure(recipe),
    )
    load_reward_models(context, rewards, placement.pause_rollout)
    export = partial(policy.export, adapter=recipe.checkpoint.export == "adapter")
    run = build_trainer_run(context, trainer, learners, export)
    return replace(run, training=placement.train)


def build_updater(
    context: BuildContext, policy: Policy, reference: Scores | None, critic: Critic | None, sampling: Sampling
) -> OnlineUpdater:
    """The updates of a step, with the micro-batches of the recipe."""
    recipe = context.recipe
    critic_warmup = recipe.algorithm.count_critic_warmup_updates(recipe.steps, recipe.updates_per_step) if critic else 0
    return OnlineUpdater(
        policy=policy,
        reference=reference,
        algorithm=recipe.algorithm,
        schedule=build_schedule(recipe, delay=critic_warmup),
        logprob_check=build_logprob_check(context, sampling),
        ranks=context.ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        fixed_length=recipe.max_completion_tokens,
        max_skipped_updates=recipe.engine.max_skipped_updates,
        critic=critic,
        critic_schedule=build_schedule(recipe, recipe.algorithm.critic_lr) if critic else None,
        critic_warmup=critic_warmup,
    )


def build_collector(context: BuildContext, sampler: Sampler, train: Stream[Prompt], sampling: Sampling) -> Collector:
    recipe = context.recipe
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    rewards = recipe.all_rewards
    graded = "accuracy" in rewards and rewards["accuracy"].weight
    return Collector(
        sampler=sampler,
        prompts=train,
        ranks=context.ranks,
        prompts_per_step=recipe.prompts_per_step,
        samples_per_prompt=require(recipe.samples_per_prompt),
        sampling=sampling,
        greedy=needs.greedy,
        max_refills=needs.max_refills,
        graded_by="accuracy" if graded else None,
        mask_truncated_completions=recipe.mask_truncated_completions,
        over_ask=recipe.rollout.over_ask,
        carried_lag=recipe.max_lag,
    )


def build_report(context: BuildContext, placement: Colocated, collector: Collector, updater: OnlineUpdater) -> OnlineReport:
    return OnlineReport(
        report=context.report,
        placement=placement,
        collector=collector,
        updater=updater,
        timer=context.timer,
        ranks=context.ranks,
        decode=context.renderer.decode,
        split_text=context.renderer.split_text,
        tokens=context.recipe.report.tokens,
        dumped=frozenset(context.recipe.report.dump_steps),
        roofline=build_roofline(context),
        opinion=build_second_opinion(context),
        graded_by=find_grader(context.recipe),
    )


def build_second_opinion(context: BuildContext) -> SecondOpinion | None:
    """None where the recipe turns it off, or where nothing is graded."""
    own = context.recipe.eval
    if own.second_opinion == {} or find_grader(context.recipe) is None:
        return None
    return SecondOpinion(tuple(list_second_opinions(context.recipe)), own.drift, context.renderer.decode, own.on_drift == "stop")
