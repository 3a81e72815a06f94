"""Gradients of one update of every algorithm through DeepSpeed: gradients.py FILE MODEL CREW [STAGE:NAME:WAY ...].

For each ZeRO stage, algorithm and way of cutting the same step up, of all of them or of those named: the gradient of the policy (and of
PPO's critic), to the precision of float32. `first:step` is the ratio of the first step, `episodes` GRPO's first update on episodes. The
optimizer is plain gradient descent with so large a step that the weights after it are the gradient; then the weights are put back. What
models said before the update is made up, from the sample's key. With CREW ranks sharing each row: some of the algorithms.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit import run
from rlkit.algorithms import Needs
from rlkit.config import recipe
from rlkit.config.compose import compose_config
from rlkit.engines.deepspeed_config import prepare_deepspeed
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.ops.masking import count_units
from rlkit.runtime.manifest import CheckpointWriter
from rlkit.runtime.ranks import Ranks
from rlkit.types import Batch, Group, Sample, Signals
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.offline_update import OfflineUpdater
from rlkit.updates.online_update import OnlineUpdater
from rlkit.updates.units import Unit
from tests.algorithms.shipped import NAMES, algorithm
from tests.algorithms.test_grpo import REWARDS, shuffled
from tests.algorithms.test_online import greedily
from tests.algorithms.tiny import episodes_of, groups_of
from tests.backends import deepspeed

STEP = 1e4
OLD = -5.5  # nats, about what a random model of 259 tokens gives each
CHANGES: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coef": 0.3, "entropy_coef": 0.1},
    "rloo": {"loss": "clipped", "kl_coef": 0.25},
    "remax": {"entropy_coef": 0.1},
    "reinforce_pp": {"kl_coef": 0.25},
    "reinforce_pp_baseline": {"kl_coef": 0.3},
    "ppo": {"kl_coef": 0.25, "gae_lambda": 0.9},
    "opd": {"kl_coef": 0.25, "clip_signal": 0.5},
}
RECIPES = {"dpo": "dpo_math", "kto": "kto_math", "sft": "sft_math", "reward_model": "reward_model"}
SHARING = ("grpo", "ppo")
EPISODES = "episodes"
STAGES = (1, 2, 3)  # 0 is run as 1
WAYS = {"whole": 10_000, "cut": 30, "shuffled": 40}  # tokens a micro-batch


class Descent(torch.optim.SGD):
    def __init__(self, parameters: Any, lr: float, **rest: Any) -> None:
        super().__init__(parameters, lr=lr)


def said(batch: Batch, seed: int, around: float) -> Tensor:
    """Numbers that belong to tokens, however the samples are dealt; [B, T]."""
    grid = torch.zeros(batch.mask.shape)
    for row, sample in enumerate(batch.samples):
        random = torch.Generator().manual_seed(100 * seed + 10 * sample.key.prompt + sample.key.sample)
        grid[row, : len(sample.tokens)] = around + torch.randn(len(sample.tokens), generator=random)
    return grid


def learning(ranks: Ranks, policy: Any, critic: Any, keys: Any, budget: int) -> OnlineUpdater:
    return OnlineUpdater(
        policy=policy,
        reference=None,
        algorithm=keys,
        schedule=Schedule(0.1, "constant", 0, 10),
        logprob_check=LogprobCheck(None),
        ranks=ranks,
        passes=1,
        minibatches=1,
        tokens_per_micro_batch=budget,
        fixed_length=12,
        max_skipped_updates=3,
        critic=critic if keys.needs(1).values else None,
    )


def one(ranks: Ranks, policy: Any, critic: Any, name: str, way: str, groups: list[Group]) -> Tensor:
    """The gradient of the update, as one vector."""
    from rlkit.updates.collate import collate

    keys = algorithm("grpo", correction="none") if name == EPISODES else algorithm(name, **CHANGES[name])
    work = learning(ranks, policy, critic, keys, WAYS[way])
    order = shuffled if way == "shuffled" else list
    _, batch = collate(order(groups[ranks.rank :: ranks.world]), ranks, 1, 0)
    signals = Signals()  # of a first update
    if name != EPISODES:
        values = said(batch, 3, 0.0) if work.critic else None
        signals = Signals(said(batch, 1, OLD), said(batch, 2, OLD), values, said(batch, 4, OLD))
    credit, *_ = keys.compute_advantages(batch, signals, keys.init_state(), ranks)
    work.accumulate_gradient(batch, signals, credit, list(range(len(batch.samples))), ranks.all_reduce_sum(count_units(batch.mask)))
    return torch.cat([moved(ranks, learner) for learner in (policy, *([critic] if work.critic else []))])


def first_step(ranks: Ranks, policy: Any, groups: list[Group]) -> tuple[Tensor, Tensor, float]:
    """The gradient where old log-probs are computed, where the pass is left out, and the largest |ratio - 1| of the first."""
    from rlkit.updates.collate import collate

    keys = algorithm("grpo")
    eager = type("Eager", (type(keys),), {"needs": lambda self, updates: Needs(old_logprobs=True)})(**keys.model_dump())
    gradients, apart = [], 0.0
    for algorithm_, budget in ((eager, 30), (keys, 10_000)):
        work = learning(ranks, policy, None, algorithm_, budget)
        _, batch = collate(groups[ranks.rank :: ranks.world], ranks, 1, 0)
        signals, _ = work.observe(batch)
        if signals.old_logprobs is not None:
            alone = OnlineUpdater(**{**vars(work), "tokens_per_micro_batch": 1})
            ratio = (alone.observe(batch)[0].old_logprobs - signals.old_logprobs).exp()  # other micro-batches
            apart = float((ratio - 1).abs()[batch.mask].max())
        credit, *_ = algorithm_.compute_advantages(batch, signals, algorithm_.init_state(), ranks)
        metrics = work.accumulate_gradient(
            batch, signals, credit, list(range(len(batch.samples))), ranks.all_reduce_sum(count_units(batch.mask))
        )
        assert metrics is not None
        gradients.append(moved(ranks, policy))
    return gradients[0], gradients[1], apart


class Remembered:
    """A reference: log-probs of whole completions, made up from their keys."""

    def look_up(self, samples: Sequence[Sample]) -> Tensor:
        draws = [torch.Generator().manual_seed(500 + 10 * s.key.prompt + s.key.sample) for s in samples]
        return torch.stack(
            [OLD * len(s.tokens) + torch.randn((), generator=d, dtype=torch.float64) for s, d in zip(samples, draws, strict=True)]
        )


def offline(ranks: Ranks, learner: Any, name: str, way: str, groups: list[Group]) -> Tensor:
    """The gradient of one update on written completions: of pairs the first two of each group."""
    keys = recipe.read_recipe(compose_config([f"recipe={RECIPES[name]}"], None)).algorithm
    groups = shuffled_whole(groups) if way == "shuffled" else groups
    if keys.reads == "pairs":
        units = [Unit(tuple(s.sample for s in g.samples[:2])) for g in groups]
    else:
        units = [Unit((s.sample,), desirable=(s.reward or 0.0) > 0.5) for g in groups for s in g.samples]
    says = (
        (lambda samples, width: learner.scores(samples).unsqueeze(-1))
        if keys.learner == "reward_model"
        else lambda s, w: learner.logprobs(s, w)[0]
    )
    updater = OfflineUpdater(learner, says, keys, Schedule(0.1, "constant", 0, 10), ranks, 1, 1, WAYS[way], 3)
    updater.accumulate_gradient(units, Remembered() if keys.reference else None)  # type: ignore[arg-type]
    return moved(ranks, learner)


def shuffled_whole(groups: list[Group]) -> list[Group]:
    """The groups in another order, their samples as they were."""
    return random.Random(8).sample(groups, len(groups))


def moved(ranks: Ranks, learner: Any) -> Tensor:
    """Steps, measures how far, and steps back."""
    before = weights(learner)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(ranks.gather(own)[0])
        learner.save(CheckpointWriter(folder))
        assert learner.step(STEP).applied
        after = weights(learner)
        learner.load(folder)  # ends with a barrier
    assert torch.equal(weights(learner), before)
    return (before - after) / STEP


def weights(learner: Any) -> Tensor:
    """All trained numbers."""
    parts = []
    for parameter in learner.backend.named.values():
        with learner.backend.gather([parameter]):
            parts.append(parameter.detach().double().flatten().clone())
    return torch.cat(parts)


def main(out: Path, model: str, sp_size: int, cells: set[str]) -> None:
    prepare_deepspeed()  # its import derives classes from the true AdamW
    torch.optim.AdamW = Descent  # type: ignore[misc]
    from rlkit.engines.learners import CriticLearner, PolicyLearner, RewardModelLearner
    from rlkit.engines.sequence_parallel import SequenceParallelGroup

    ranks = Ranks(1, sp_size)
    sp_group = SequenceParallelGroup(ranks.sp_group) if ranks.sp_group else None
    groups = greedily(groups_of(REWARDS))
    seen: dict[Any, Any] = {}
    for stage in STAGES:

        def wanted(name: str, way: str, stage: int = stage) -> bool:
            return not cells or f"{stage}:{name}:{way}" in cells

        if cells and not any(cell.startswith(f"{stage}:") for cell in cells):
            continue
        settings: dict[str, Any] = {
            "backend": deepspeed(stage, ranks.device, norm=1e9),
            "offline": True,
        }
        policy = PolicyLearner(model, torch.float32, temperature=1.0, sp_group=sp_group, **settings)
        critic = CriticLearner(model, torch.float32, sp_group=sp_group, **settings)
        for way in WAYS if cells else ():
            if wanted(EPISODES, way):
                seen[stage, EPISODES, way] = one(ranks, policy, critic, EPISODES, way, episodes_of(REWARDS))
        for name in SHARING if sp_group else NAMES:
            for way in ("cut",) if sp_group else WAYS:
                if wanted(name, way):
                    seen[stage, name, way] = one(ranks, policy, critic, name, way, groups)
        if sp_group:
            if wanted("dpo", "cut"):
                seen[stage, "dpo", "cut"] = offline(ranks, policy, "dpo", "cut", groups)
            continue
        judge = RewardModelLearner(model, torch.float32, pad=256, **settings)
        for name in RECIPES:
            for way in WAYS:
                if wanted(name, way):
                    seen[stage, name, way] = offline(ranks, judge if name == "reward_model" else policy, name, way, groups)
        if wanted("first", "step"):
            seen[stage, "first step"] = first_step(ranks, policy, groups)
    if ranks.main:
        torch.save(seen, out)
    ranks.barrier()


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), set(sys.argv[4:]))
run.exit_process(0)
