"""The parts of an offline run: no rollout engine, no rewards, and no reference in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlkit.assembly import plan
from rlkit.assembly.common import build_roofline, build_schedule, build_trainer_run, fit_micro_batch
from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.models import build_policy, build_reward_model
from rlkit.data.stream import Stream
from rlkit.runtime.cache import find_cache_folder
from rlkit.trainers.loop import Run
from rlkit.trainers.offline import OfflineTrainer
from rlkit.types import Sample
from rlkit.updates.offline_update import OfflineUpdater
from rlkit.updates.reference_cache import load_or_compute
from rlkit.updates.units import UNITS

Outputs = Callable[[Sequence[Sample], int], Tensor]
BuiltLearner = tuple[Any, Outputs, Callable[[Path], None]]  # what learns, its outputs, its export


def build_offline(context: BuildContext, train: Stream[Any], test: list[Any]) -> Run:
    """Loads the learner, computes the reference's log-probs by it, and puts the parts together."""
    recipe, ranks, report = context.recipe, context.ranks, context.report
    report.show_phase("loading model")
    algorithm = recipe.algorithm
    learner, outputs, export = LEARNERS[algorithm.learner](context)
    updater = OfflineUpdater(
        learner=learner,
        outputs=outputs,
        algorithm=algorithm,
        schedule=build_schedule(recipe),
        ranks=ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=fit_micro_batch(context, [learner]),
        max_skipped_updates=recipe.engine.max_skipped_updates,
    )
    trainer = OfflineTrainer(
        rows=train,
        rows_per_step=recipe.prompts_per_step,
        held_out=[UNITS[algorithm.reads](item) for item in test],
        updater=updater,
        reference=None,
        timer=context.timer,
        stopping=context.stopping,
        roofline=build_roofline(context),
        predicted=plan.predict_peaks(recipe),
    )
    if algorithm.reference:
        report.show_phase("reference")
        samples = trainer.samples_for_reference(require(recipe.steps))
        trainer.reference, computed = load_or_compute(learner, samples, ranks, updater.tokens_per_micro_batch, find_cache_folder())
        report.note(f"reference log-probs: {f'computed of {computed:,} completions' if computed else 'found in the cache'}")
    return build_trainer_run(context, trainer, [learner], export)


def build_policy_learner(context: BuildContext) -> BuiltLearner:
    """A policy, whose outputs are log-probs [B, T]."""
    policy = build_policy(context)

    def outputs(samples: Sequence[Sample], width: int) -> Tensor:
        return policy.logprobs(samples, width)[0]

    return policy, outputs, partial(policy.export, adapter=context.recipe.checkpoint.export == "adapter")


def build_reward_model_learner(context: BuildContext) -> BuiltLearner:
    """A reward model, whose outputs are scores [B, 1]."""
    model = build_reward_model(context)

    def outputs(samples: Sequence[Sample], width: int) -> Tensor:
        return model.scores(samples).unsqueeze(-1)

    return model, outputs, model.export


LEARNERS: dict[str, Callable[[BuildContext], BuiltLearner]] = {"policy": build_policy_learner, "reward_model": build_reward_model_learner}
