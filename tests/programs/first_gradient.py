"""The first step's completions and the gradient of its update: first_gradient.py FILE arguments...

Goes through the real assembly, rollout and backward passes. The optimizer is plain gradient descent with so large a step that the
weights after it are the gradient, to the precision of float32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from rlkit import run
from rlkit.assembly import build
from rlkit.config import recipe
from rlkit.config.compose import compose_config
from rlkit.engines.deepspeed_config import prepare_deepspeed
from rlkit.ops.masking import count_units
from rlkit.trainers.offline import OfflineTrainer
from rlkit.trainers.online import OnlineTrainer
from rlkit.updates.collate import collate
from rlkit.updates.units import UNITS

STEP = 1e4


class Descent(torch.optim.SGD):
    def __init__(self, parameters: Any, lr: float, **rest: Any) -> None:
        super().__init__(parameters, lr=lr)


def weights_of(learner: Any) -> dict[str, torch.Tensor]:
    """Whole, on every rank; of a policy by their names in a checkpoint."""
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(learner, "weights"):
        return {name: tensor.clone() for name, tensor in learner.weights()}
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in learner.backend.named.items()}


prepare_deepspeed()  # its import derives classes from the true AdamW
torch.optim.AdamW = Descent
config = compose_config([*sys.argv[2:], "optim.max_grad_norm=1e9"], None)
with build.build_run(recipe.read_recipe(config), yaml.safe_dump(config)) as made:
    trainer = made.trainer
    if isinstance(trainer, OnlineTrainer):
        with trainer.placement.rollout():
            taken = trainer.collector.take()
        assert taken is not None
        with trainer.placement.train():
            groups, batch = collate(taken.groups, made.ranks, 1, trainer.placement.version)
            signals, _ = trainer.updater.observe(batch)
            credit, *_ = trainer.updater.algorithm.compute_advantages(batch, signals, trainer.algorithm_state, made.ranks)
            totals = made.ranks.all_reduce_sum(count_units(batch.mask))
            trainer.updater.accumulate_gradient(batch, signals, credit, list(range(len(batch.samples))), totals)
        learner, share = trainer.updater.policy, len(batch.samples)
        samples = [s.sample for g in groups for s in g.samples]
    else:
        assert isinstance(trainer, OfflineTrainer)
        units = [UNITS[trainer.updater.algorithm.reads](item) for item in trainer.rows.take(trainer.rows_per_step)]
        trainer.updater.accumulate_gradient(units, trainer.reference)
        learner, samples = trainer.updater.learner, [s for u in units for s in u.samples]
        share = len(trainer.updater.select_share(units)) * len(units[0].samples)
    before = weights_of(learner)
    assert learner.step(STEP).applied
    gradients = {name: (before[name] - tensor) / STEP for name, tensor in weights_of(learner).items()}
    if made.ranks.main:
        tokens = {str(list(s.key)): s.tokens for s in samples}
        torch.save({"gradients": gradients, "tokens": tokens, "share": share}, Path(sys.argv[1]))
    made.ranks.barrier()
run.exit_process(0)
