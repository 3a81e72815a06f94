"""The parts of an offline run: no rollout engine, no rewards, and no reference in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.assembly import plan
from rlkit.assembly.base_model import dtype_of
from rlkit.assembly.common import build_roofline, build_schedule, build_trainer_run, fit_micro_batch
from rlkit.assembly.models import learner_settings, make_policy
from rlkit.builtin.model import find_cache_folder
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.report import Report
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import Run
from rlkit.trainers.offline import UNITS, OfflineTrainer, OfflineUpdater
from rlkit.types import Sample
from rlkit.updates.reference_cache import load_or_compute


def build_offline(
    recipe: Recipe,
    ranks: Ranks,
    folder: Path,
    model_path: str,
    renderer: Renderer,
    rows: tuple[Any, list[Any]],
    report: Report,
    stopping: StopRequest,
) -> Run:
    """Loads what learns, asks it for the reference before it learns, and puts the parts together; rows: to train on, and held out."""
    clock = PhaseTimer(report.show_phase)
    report.show_phase("loading")
    stream, held_out = rows
    algorithm = recipe.algorithm
    learner, said, export = LEARNERS[algorithm.learner](recipe, model_path, ranks, renderer)
    reading = OfflineUpdater(
        learner=learner,
        said=said,
        algorithm=algorithm,
        schedule=build_schedule(recipe),
        ranks=ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=fit_micro_batch(recipe, [learner], ranks, folder, report),
        max_skipped_updates=recipe.engine.max_skipped_updates,
    )
    units = [UNITS[algorithm.reads](item) for item in held_out]
    floors, predicted = build_roofline(recipe, ranks), plan.predicted(recipe)
    trainer = OfflineTrainer(stream, recipe.prompts_per_step, units, reading, None, clock, stopping, floors, predicted)
    if algorithm.reference:
        report.show_phase("reference")
        asked = trainer.ahead(recipe.steps)
        trainer.reference, computed = load_or_compute(learner, asked, ranks, reading.tokens_per_micro_batch, find_cache_folder())
        report.note(f"reference log-probs: {f'computed of {computed:,} completions' if computed else 'found in the cache'}")
    return build_trainer_run(recipe, trainer, [learner], export, renderer, folder, ranks, report, clock, stopping)


Said = Callable[[Sequence[Sample], int], Tensor]
Made = tuple[Any, Said, Callable[[Path], None]]  # what learns, what it says, how it is written down


def policy(recipe: Recipe, path: str, ranks: Ranks, renderer: Renderer) -> Made:
    """A policy that says log-probs [B, T]."""
    made = make_policy(recipe, path, dtype_of(recipe, ranks.device), ranks)
    return (
        made,
        lambda samples, width: made.logprobs(samples, width)[0],
        partial(made.export, adapter=recipe.checkpoint.export == "adapter"),
    )


def reward_model(recipe: Recipe, path: str, ranks: Ranks, renderer: Renderer) -> Made:
    """A reward model that says one score [B, 1] a completion."""
    from rlkit.engines.deepspeed_reward_model import DeepSpeedRewardModel

    dtype: torch.dtype = dtype_of(recipe, ranks.device)
    made = DeepSpeedRewardModel(path, dtype, pad=renderer.pad_id, **learner_settings(recipe, ranks))
    return made, lambda samples, width: made.scores(samples).unsqueeze(-1), made.export


LEARNERS: dict[str, Callable[[Recipe, str, Ranks, Renderer], Made]] = {"policy": policy, "reward_model": reward_model}
