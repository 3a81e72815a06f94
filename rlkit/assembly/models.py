"""The models and engines of a run: policy, critic, reference, rollout engine, and the placement that has them share a device."""

from __future__ import annotations

from typing import Any

import torch

from rlkit.assembly import plan
from rlkit.assembly.base_model import lora_of
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.engines.lora import BaseOfPolicy, send_adapter, send_merged
from rlkit.engines.placement import Colocated
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.timer import PhaseTimer
from rlkit.types import Sampling

SENDS = {"merged": send_merged, "adapter": send_adapter}
MISMATCH_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # mean |difference of log-probs|, nats


def sp_group_of(ranks: Ranks) -> Any:
    """Whom this rank's models share their rows with; None: nobody."""
    from rlkit.engines.sequence_parallel import SequenceParallelGroup

    return SequenceParallelGroup(ranks.sp_group) if ranks.sp_group else None


def make_policy(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedPolicy

    temperature = recipe.sampling.temperature if recipe.sampling else 1.0
    return DeepSpeedPolicy(
        path,
        dtype,
        temperature=temperature,
        lora=lora_of(recipe),
        four_bits=recipe.model.load_in_4bit,
        crew=sp_group_of(ranks),
        **learner_settings(recipe, ranks),
    )


def make_critic(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedCritic

    return DeepSpeedCritic(path, dtype, crew=sp_group_of(ranks), **learner_settings(recipe, ranks))


def learner_settings(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    from rlkit.engines.deepspeed_config import OptimizerSettings

    optim = recipe.optim
    return {
        "zero_stage": recipe.engine.zero_stage,
        "optimizer": OptimizerSettings(
            optim.betas, optim.eps, optim.weight_decay, optim.max_grad_norm, recipe.engine.offload == "optimizer"
        ),
        "device": ranks.device,
        "offline": recipe.offline,
        "extra": recipe.engine.deepspeed,
        "recompute": recipe.engine.gradient_checkpointing,
    }


def make_engine(recipe: Recipe, path: str, dtype: torch.dtype, names: list[str], renderer: Renderer, ranks: Ranks) -> Any:
    if recipe.engine.rollout == "hf":
        from rlkit.engines.hf import HFEngine

        return HFEngine(path, dtype, device=ranks.device, eos=renderer.eos_ids, pad=renderer.pad_id, offline=recipe.offline)
    from rlkit.engines.vllm import VLLMEngine

    return VLLMEngine(
        path,
        str(dtype).removeprefix("torch."),
        names=names,
        max_model_len=plan.longest(recipe),
        eos=renderer.eos_ids,
        world=ranks.world,
        tensor_parallel=recipe.engine.tensor_parallel,
        gpu=ranks.device.type == "cuda",
        sleeps=ranks.device.type == "cuda" and plan.mode(recipe) != "resident",
        extra={**plan.share(recipe), **recipe.engine.vllm},
        adapter_rank=recipe.model.lora.rank if recipe.engine.lora_sync == "adapter" else None,
    )


def make_reference(recipe: Recipe, policy: Any, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.hf import Reference

    if policy.adapters is not None:
        return BaseOfPolicy(policy)

    temperature = recipe.sampling.temperature
    return Reference(path, dtype, temperature=temperature, device=ranks.device, offline=recipe.offline, crew=sp_group_of(ranks))


def make_probe(recipe: Recipe, policy: Any, engine: Any, dtype: torch.dtype, sampling: Sampling) -> LogprobCheck:
    limit = MISMATCH_LIMIT[dtype] if recipe.engine.mismatch_limit == "auto" else recipe.engine.mismatch_limit
    sent = policy.parts_sent if recipe.engine.lora_sync == "adapter" else policy.weights
    return LogprobCheck(engine, sent, None if sampling.truncated else limit)


def make_placement(recipe: Recipe, policy: Any, engine: Any, others: tuple[Any, ...], clock: PhaseTimer) -> Colocated:
    movables = tuple(other for other in others if other)
    send, mode = SENDS[recipe.engine.lora_sync], plan.mode(recipe)
    return Colocated(policy, engine, movables, clock, send, mode, predicted=plan.predicted(recipe))
