"""Parts of every run, online or offline: the largest micro-batch, schedules, the roofline, and the loop around a trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from rlkit.assembly import plan
from rlkit.assembly.context import BuildContext, require
from rlkit.config.recipe import Recipe
from rlkit.engines.base import Learner
from rlkit.profiling.roofline import Roofline, find_device_limits
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints
from rlkit.trainers.loop import Run, Trainer
from rlkit.trainers.selection import Selection
from rlkit.updates import micro_batch_fit
from rlkit.updates.lr_schedule import Schedule


def fit_micro_batch(context: BuildContext, learners: Sequence[Learner]) -> int:
    """Tokens of a micro-batch that fits into memory."""
    recipe, ranks, folder, report = context.recipe, context.ranks, context.folder, context.report
    report.show_phase("trying the largest micro-batch")
    budget = micro_batch_fit.read_budget(folder, recipe.tokens_per_micro_batch)
    step = largest_share(recipe, ranks.world // ranks.sp_size, ranks.sp_size)
    sp = ranks.sp_size, ranks.rank % ranks.sp_size
    any_rank = micro_batch_fit.any_rank_after_barrier(ranks.barrier_with_timeout, ranks.any_rank, folder, budget, step.least)
    fits, failed = micro_batch_fit.largest_micro_batch(learners, budget, step, any_rank, sp)
    if failed:
        report.note(f"tokens_per_micro_batch={failed} does not fit into memory; {fits} does and is used")
    elif budget < recipe.tokens_per_micro_batch:
        report.note(f"tokens_per_micro_batch={recipe.tokens_per_micro_batch} ran out of memory before; {budget} is used")
    return fits


def largest_share(recipe: Recipe, groups: int, size: int) -> micro_batch_fit.StepShape:
    """The most that a rank can get of a step, with so many sequence-parallel groups of so many ranks."""
    together, share = recipe.samples_of_a_prompt, plan.count_share(recipe, groups, size)
    return micro_batch_fit.StepShape(recipe.max_prompt_tokens, recipe.max_completion_tokens, together, share, recipe.least_budget)


def build_roofline(context: BuildContext) -> Roofline | None:
    """On the rank that reports, where the shape of the model is known, and gives the number of weights of its files.

    In a sequence-parallel group, whose ranks compute each other's samples, by the rank's own: all have about as many tokens.
    """
    recipe = context.recipe
    job = plan.build_job(recipe)
    if job is None or not (job.shape.counted and context.ranks.main and recipe.report.roofline):
        return None
    if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model":
        job = replace(job, shape=replace(job.shape, vocab=1))  # its head returns one number
    adapter = recipe.engine.lora_sync == "adapter" and job.rank is not None
    offloads = plan.choose_mode(recipe) == "sleep_and_offload"
    return Roofline(job, find_device_limits(context.ranks.device, context.dtype), adapter, offloads=offloads)


def build_trainer_run(context: BuildContext, trainer: Trainer, learners: Sequence[Learner], export: Callable[[Path], None]) -> Run:
    """A trainer in the loop of every run."""
    recipe, ranks, folder = context.recipe, context.ranks, context.folder
    every, keep, asked = recipe.checkpoint.every, recipe.checkpoint.keep, [step - 1 for step in recipe.report.dump_steps]
    return Run(
        steps=require(recipe.steps),
        trainer=trainer,
        eval_every=[recipe.eval.every, *(one.every or 0 for one in recipe.eval.sets.values())],
        learners=learners,
        export=export,
        save_tokenizer=context.renderer.save,
        checkpoints=Checkpoints(folder / CHECKPOINTS, every=every, keep=keep, main=ranks.main, gather=ranks.gather, asked=asked),
        selection=Selection(recipe.eval.select or trainer.measure, recipe.eval.patience, recipe.checkpoint.best),
        report=context.report,
        timer=context.timer,
        ranks=ranks,
        stopping=context.stopping,
        folder=folder,
    )


def build_schedule(recipe: Recipe, lr: float | None = None, delay: int = 0) -> Schedule:
    """lr: the recipe's where it is None; delay: updates before the first."""
    optim, peak = recipe.optim, recipe.optim.lr if lr is None else lr
    updates, total = recipe.updates_per_step, require(recipe.steps) * recipe.updates_per_step
    warmup = count_warmup_updates(optim.warmup_steps, updates, total)
    return Schedule(peak, optim.schedule, warmup, total - delay, optim.min_lr_ratio)


def count_warmup_updates(warmup: float, updates_per_step: int, total: int) -> int:
    """Updates of a warm-up given in steps or, below 1, as a share of all updates, rounded up as in transformers."""
    return math.ceil(Fraction(str(warmup)) * (total if warmup < 1 else updates_per_step))  # of the decimal: 0.07 of 100 is 7, not 8
