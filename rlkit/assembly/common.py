"""What every run has, online or offline: the largest micro-batch, schedules, the roofline, and what stands around a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rlkit.assembly import plan
from rlkit.assembly.base_model import dtype_of
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.engines.base import Learner
from rlkit.profiling.roofline import Roofline, find_device_limits
from rlkit.report import Report
from rlkit.runtime.checkpoint import CHECKPOINTS, Checkpoints
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import Run, Trainer
from rlkit.updates import micro_batch_fit
from rlkit.updates.lr_schedule import Schedule


def fit_micro_batch(recipe: Recipe, learners: Sequence[Learner], ranks: Ranks, folder: Path, report: Report) -> int:
    """Tokens of a micro-batch that fits into memory."""
    report.show_phase("trying the largest micro-batch")
    budget = micro_batch_fit.remembered(folder, recipe.tokens_per_micro_batch)
    crews = ranks.world // ranks.sp_size
    mine, together = -(-recipe.samples_per_step // crews), recipe.samples_of_a_prompt
    prompts = min(mine, -(-mine // together) + (crews > 1))  # of several crews, some share a prompt
    share = (prompts * recipe.max_prompt_tokens + mine * recipe.max_completion_tokens) // ranks.sp_size
    sizes = (recipe.max_prompt_tokens, recipe.max_completion_tokens, together)
    least, crew = recipe.least_budget, (ranks.sp_size, ranks.rank % ranks.sp_size)
    anyone = micro_batch_fit.asked_together(ranks.barrier_with_timeout, ranks.any_rank, folder, budget, least)
    fits, failed = micro_batch_fit.largest_micro_batch(learners, budget, *sizes, share, anyone, least, crew)
    if failed:
        report.note(f"tokens_per_micro_batch={failed} does not fit into memory; {fits} does and is used")
    elif budget < recipe.tokens_per_micro_batch:
        report.note(f"tokens_per_micro_batch={recipe.tokens_per_micro_batch} ran out of memory before; {budget} is used")
    return fits


def build_roofline(recipe: Recipe, ranks: Ranks) -> Roofline | None:
    """On the rank that reports, where the shape of the model is known. In a crew, whose ranks compute each other's samples, by its own:
    all have about as many tokens."""
    job = plan.job_of(recipe)
    if job is None or not (ranks.main and recipe.report.roofline):
        return None
    if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model":
        job = replace(job, shape=replace(job.shape, vocab=1))  # its head says one number
    adapter = recipe.engine.lora_sync == "adapter" and job.rank is not None
    return Roofline(
        job, find_device_limits(ranks.device, dtype_of(recipe, ranks.device)), adapter, offloads=plan.mode(recipe) == "sleep_and_offload"
    )


def build_trainer_run(
    recipe: Recipe,
    trainer: Trainer,
    learners: Sequence[Learner],
    export: Callable[[Path], None],
    renderer: Renderer,
    folder: Path,
    ranks: Ranks,
    report: Report,
    clock: PhaseTimer,
    stopping: StopRequest,
) -> Run:
    """A trainer with what surrounds it in every run."""
    every, keep = recipe.checkpoint.every, recipe.checkpoint.keep
    return Run(
        steps=recipe.steps,
        trainer=trainer,
        eval_every=recipe.eval.every,
        learners=learners,
        export=export,
        save_tokenizer=renderer.save,
        checkpoints=Checkpoints(folder / CHECKPOINTS, every=every, keep=keep, main=ranks.main, barrier=ranks.barrier),
        keep_best=recipe.checkpoint.best,
        report=report,
        clock=clock,
        ranks=ranks,
        stopping=stopping,
        folder=folder,
    )


def build_schedule(recipe: Recipe, lr: float | None = None, waits: int = 0) -> Schedule:
    updates, peak = recipe.updates_per_step, recipe.optim.lr if lr is None else lr
    return Schedule(peak, recipe.optim.schedule, recipe.optim.warmup_steps * updates, recipe.steps * updates - waits)
