"""The models and engines of a run: policy, critic, reference, rollout engine, and the placement in which they share a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from rlkit.assembly import plan
from rlkit.assembly.base_model import build_lora
from rlkit.assembly.context import BuildContext, require
from rlkit.config.recipe import Recipe
from rlkit.engines.base import BackendFactory, Offloadable, RolloutEngine
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.engines.placement import Colocated
from rlkit.engines.weight_sync import send_adapter, send_merged
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sampling

if TYPE_CHECKING:  # these import transformers or deepspeed, which a dry run does not need
    from rlkit.engines.learners import CriticLearner, PolicyLearner, RewardModelLearner
    from rlkit.engines.reference import BaseOfPolicy, ReferenceModel
    from rlkit.engines.sequence_parallel import SequenceParallelGroup

SENDS: dict[str, Callable[[Any, Any, int], None]] = {"merged": send_merged, "adapter": send_adapter}
MISMATCH_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # mean |difference of log-probs|, nats


def build_sp_group(ranks: Ranks) -> SequenceParallelGroup | None:
    """The ranks with which this rank's models share their rows; None where there are none."""
    from rlkit.engines.sequence_parallel import SequenceParallelGroup

    return SequenceParallelGroup(ranks.sp_group) if ranks.sp_group else None


def build_backend(recipe: Recipe, ranks: Ranks) -> BackendFactory:
    """The backend of all learners. Another backend is another file in rlkit/engines/ and a choice here."""
    from rlkit.engines.deepspeed import DeepSpeed
    from rlkit.engines.deepspeed_config import DeepSpeedSettings, OptimizerSettings

    optim, engine = recipe.optim, recipe.engine
    optimizer = OptimizerSettings(optim.betas, optim.eps, optim.weight_decay, optim.max_grad_norm)
    return DeepSpeed(DeepSpeedSettings(engine.zero_stage, optimizer, engine.offload == "optimizer", engine.deepspeed), ranks.device)


def build_policy(context: BuildContext) -> PolicyLearner:
    from rlkit.engines.learners import PolicyLearner

    recipe = context.recipe
    return PolicyLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        temperature=recipe.sampling.temperature if recipe.sampling else 1.0,
        offline=recipe.offline,
        checkpoint_every=recipe.engine.gradient_checkpointing,
        lora=build_lora(recipe),
        sp_group=build_sp_group(context.ranks),
        four_bits=recipe.model.load_in_4bit,
    )


def build_critic(context: BuildContext) -> CriticLearner:
    from rlkit.engines.learners import CriticLearner

    recipe = context.recipe
    return CriticLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        offline=recipe.offline,
        checkpoint_every=recipe.engine.gradient_checkpointing,
        sp_group=build_sp_group(context.ranks),
    )


def build_reward_model(context: BuildContext) -> RewardModelLearner:
    from rlkit.engines.learners import RewardModelLearner

    recipe = context.recipe
    return RewardModelLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        pad=context.renderer.pad_id,
        offline=recipe.offline,
        checkpoint_every=recipe.engine.gradient_checkpointing,
    )


def build_engine(context: BuildContext, names: list[str]) -> RolloutEngine:
    """The rollout engine; names: every tensor of the checkpoint."""
    recipe, ranks, renderer = context.recipe, context.ranks, context.renderer
    if recipe.engine.rollout == "hf":
        from rlkit.engines.hf_generate import HFEngine

        return HFEngine(
            context.model_path,
            context.dtype,
            device=ranks.device,
            eos=renderer.eos_ids,
            pad=renderer.pad_id,
            offline=recipe.offline,
        )
    from rlkit.engines.vllm import VLLMEngine

    return VLLMEngine(
        context.model_path,
        str(context.dtype).removeprefix("torch."),
        names=names,
        max_model_len=plan.longest_sample(recipe),
        eos=renderer.eos_ids,
        world=ranks.world,
        tensor_parallel=recipe.engine.tensor_parallel,
        gpu=ranks.device.type == "cuda",
        sleeps=ranks.device.type == "cuda" and plan.choose_mode(recipe) != "resident",
        extra={**plan.vllm_memory_share(recipe), **recipe.engine.vllm},
        adapter_rank=recipe.model.lora.rank if recipe.engine.lora_sync == "adapter" else None,
    )


def build_reference(context: BuildContext, policy: PolicyLearner) -> ReferenceModel | BaseOfPolicy:
    """The frozen reference: the policy without its adapters, or a second model."""
    from rlkit.engines.reference import BaseOfPolicy, ReferenceModel

    if policy.adapters is not None:
        return BaseOfPolicy(policy)
    recipe, ranks = context.recipe, context.ranks
    return ReferenceModel(
        context.model_path,
        context.dtype,
        temperature=require(recipe.sampling).temperature,
        device=ranks.device,
        offline=recipe.offline,
        sp_group=build_sp_group(ranks),
    )


def build_logprob_check(context: BuildContext, policy: PolicyLearner, engine: RolloutEngine, sampling: Sampling) -> LogprobCheck:
    engine_settings = context.recipe.engine
    limit = MISMATCH_LIMIT[context.dtype] if engine_settings.mismatch_limit == "auto" else engine_settings.mismatch_limit
    weights = policy.base_and_adapter_weights if engine_settings.lora_sync == "adapter" else policy.weights
    return LogprobCheck(engine, weights, None if sampling.truncated else limit)


def build_placement(
    context: BuildContext, policy: PolicyLearner, engine: RolloutEngine, others: tuple[Offloadable | None, ...]
) -> Colocated:
    """others: models beside policy and engine, where there are any."""
    recipe = context.recipe
    movables = tuple(other for other in others if other)
    send, mode = SENDS[recipe.engine.lora_sync], plan.choose_mode(recipe)
    return Colocated(policy, engine, movables, context.timer, send, mode, predicted=plan.predict_peaks(recipe))
