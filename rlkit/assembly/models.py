"""The models and engines of a run: policy, critic, reference, teacher, rollout engine, and the placement in which they share a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlkit.assembly import plan
from rlkit.assembly.base_model import build_lora, load_model_config
from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.teacher import TEACHER, load_teacher_config, must_be_here
from rlkit.config.recipe import Recipe
from rlkit.engines.base import BackendFactory, Offloadable, RolloutEngine
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.engines.placement import Colocated
from rlkit.engines.rope import pin_rope
from rlkit.engines.vllm_startup import explain_rounding
from rlkit.engines.weight_sync import Send, WeightSync, send_adapter, send_merged, send_to_module
from rlkit.errors import UserError
from rlkit.rollout.open_groups import TOKENS_BETWEEN_COUNTS
from rlkit.runtime.cache import find_cache_folder
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sampling

if TYPE_CHECKING:  # these import transformers or deepspeed, which a dry run does not need
    from rlkit.engines.learners import CriticLearner, PolicyLearner, RewardModelLearner
    from rlkit.engines.reference import BaseOfPolicy, ReferenceModel
    from rlkit.engines.sequence_parallel import SequenceParallelGroup
    from rlkit.engines.teacher_server import TeacherServer

SENDS: dict[str, Send] = {"merged": send_merged, "adapter": send_adapter, "hf": send_to_module}
MISMATCH_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # mean |difference of log-probs|, nats
USUAL_MISMATCH = {torch.float32: math.inf, torch.bfloat16: 2e-2}  # above which a run warns, nats


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
    wide = not ranks.any_rank(not plan.accumulates_in_float32(recipe))  # GPUs may differ in size
    settings = DeepSpeedSettings(engine.zero_stage, optimizer, engine.offload == "optimizer", wide, engine.deepspeed)
    return DeepSpeed(settings, ranks.device)


def set_computation(recipe: Recipe, model: Any) -> None:
    """What trainer, reference and sampler compute alike, where the recipe decides it."""
    from rlkit.engines.heads import compute_head_in_float32

    pin_rope(model, plan.longest_context(recipe))
    if recipe.model.float32_head:
        compute_head_in_float32(model)


def build_policy(context: BuildContext) -> PolicyLearner:
    """The policy, of a model that was shown to be trained exactly."""
    from rlkit.engines.learners import PolicyLearner

    recipe = context.recipe
    certify_model(context, "causal language model")
    policy = PolicyLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        temperature=recipe.sampling.temperature if recipe.sampling else 1.0,
        offline=recipe.offline,
        trust_remote_code=recipe.model.trust_remote_code,
        checkpoint_every=recipe.engine.gradient_checkpointing,
        lora=build_lora(recipe),
        sp_group=build_sp_group(context.ranks),
        four_bits=recipe.model.load_in_4bit,
    )
    if policy.adapters and recipe.checkpoint.export == "adapter":
        policy.adapters.check_files()
    set_computation(recipe, policy.model)
    verify_weights(context, f"model.path {context.model_path}", policy.model, policy.backend.module, policy.sp_group)
    return policy


def certify_model(context: BuildContext, kind: str, config: Any = None, where: str | None = None) -> None:
    """Raises UserError where models of this configuration, the policy's without one, are not computed exactly."""
    from rlkit.engines.certificate import certify

    certify(
        config or load_model_config(context.recipe, context.model_path),
        kind,
        where=where or f"model.path {context.model_path}",
        cache=find_cache_folder() / "certificates",
        checkpoint_every=context.recipe.engine.gradient_checkpointing,
        device=context.ranks.device,
        trust_remote_code=context.recipe.model.trust_remote_code,
    )


def verify_weights(context: BuildContext, where: str, model: Any, scorer: nn.Module, sp_group: SequenceParallelGroup | None) -> None:
    """Raises UserError where a model with its own weights is, in its scorer, not the one that transformers loads."""
    from rlkit.engines.certificate import WEIGHTS_LIMIT, compare_weights

    difference = compare_weights(model, scorer, context.ranks.device, sp_group)
    limit = WEIGHTS_LIMIT[context.dtype]
    if context.ranks.any_rank(not difference <= limit):
        raise UserError(
            f"{where}: log-probs of two short samples, packed, differ by {difference:.2g} in the mean from those "
            f"of transformers, and at most {limit:.2g} is taken for rounding; choose another model or model.dtype=float32"
        )


def build_critic(context: BuildContext) -> CriticLearner:
    from rlkit.engines.learners import CriticLearner

    recipe = context.recipe
    context.report.show_phase("loading critic")
    critic = CriticLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        offline=recipe.offline,
        trust_remote_code=recipe.model.trust_remote_code,
        checkpoint_every=recipe.engine.gradient_checkpointing,
        sp_group=build_sp_group(context.ranks),
    )
    pin_rope(critic.backend.module, plan.longest_context(recipe))
    return critic


def build_reward_model(context: BuildContext) -> RewardModelLearner:
    from rlkit.engines.learners import RewardModelLearner

    recipe = context.recipe
    certify_model(context, "sequence classifier")
    model = RewardModelLearner(
        context.model_path,
        context.dtype,
        backend=build_backend(recipe, context.ranks),
        pad=context.renderer.pad_id,
        offline=recipe.offline,
        trust_remote_code=recipe.model.trust_remote_code,
        checkpoint_every=recipe.engine.gradient_checkpointing,
    )
    pin_rope(model.model, plan.longest_context(recipe))
    return model


def build_engine(context: BuildContext, names: list[str]) -> RolloutEngine:
    """The rollout engine; names: every tensor of the checkpoint."""
    recipe, ranks, renderer = context.recipe, context.ranks, context.renderer
    context.report.show_phase(f"starting {recipe.engine.rollout}")
    if recipe.engine.rollout == "hf":
        from rlkit.engines.hf_generate import WHOLE, HFEngine

        engine = HFEngine(
            context.model_path,
            context.dtype,
            device=ranks.device,
            eos=renderer.eos_ids,
            pad=renderer.pad_id,
            offline=recipe.offline,
            trust_remote_code=recipe.model.trust_remote_code,
            tokens_per_advance=TOKENS_BETWEEN_COUNTS if recipe.rollout.carries_over else WHOLE,
        )
        set_computation(recipe, engine.model)
        return engine
    from rlkit.engines.vllm import VLLMEngine
    from rlkit.engines.vllm_overrides import build_overrides

    warn_of_rounding(context)

    return VLLMEngine(
        context.model_path,
        str(context.dtype).removeprefix("torch."),
        names=names,
        max_model_len=plan.longest_context(recipe),
        eos=renderer.eos_ids,
        world=ranks.world,
        tensor_parallel=recipe.engine.tensor_parallel,
        gpu=ranks.device.type == "cuda",
        sleeps=ranks.device.type == "cuda" and plan.choose_mode(recipe) != "resident",
        extra={
            "trust_remote_code": recipe.model.trust_remote_code,
            "hf_overrides": build_overrides(load_model_config(recipe, context.model_path), context.dtype, recipe.model.float32_head),
            **plan.vllm_memory_share(recipe),
            **recipe.engine.vllm,
        },
        adapter_rank=recipe.model.lora.rank if recipe.engine.lora_sync == "adapter" else None,
    )


def warn_of_rounding(context: BuildContext) -> None:
    """Where this version of vLLM returns log-probs on a GPU that are off by more than rounding."""
    from importlib.metadata import version

    temperature = require(context.recipe.sampling).temperature
    if context.ranks.device.type == "cuda" and (text := explain_rounding(version("vllm"), context.dtype, temperature)):
        context.report.warn(text)


def build_reference(context: BuildContext, policy: PolicyLearner) -> ReferenceModel | BaseOfPolicy:
    """The frozen reference: the policy without its adapters, or a second model where more is trained than adapters."""
    from rlkit.engines.reference import BaseOfPolicy, ReferenceModel

    if policy.adapters is not None and not policy.adapters.whole:
        return BaseOfPolicy(policy)
    recipe, ranks = context.recipe, context.ranks
    context.report.show_phase("loading reference")
    reference = ReferenceModel(
        context.model_path,
        context.dtype,
        temperature=require(recipe.sampling).temperature,
        device=ranks.device,
        offline=recipe.offline,
        trust_remote_code=recipe.model.trust_remote_code,
        sp_group=build_sp_group(ranks),
    )
    set_computation(recipe, reference.scorer.model)
    return reference


def build_teacher(context: BuildContext) -> ReferenceModel | TeacherServer:
    """A frozen model that was shown to be computed exactly, or the server that has one."""
    from rlkit.engines.reference import ReferenceModel

    recipe, ranks, found = context.recipe, context.ranks, require(context.teacher)
    if found.server is not None:
        return found.server
    context.report.show_phase("loading teacher")
    where = f"{TEACHER} {found.path}"
    certify_model(context, "causal language model", load_teacher_config(recipe, found.path), where)
    teacher = ReferenceModel(
        found.path,
        context.dtype,
        temperature=require(recipe.sampling).temperature,
        device=ranks.device,
        offline=must_be_here(recipe, found.path),
        trust_remote_code=recipe.model.trust_remote_code,
        sp_group=build_sp_group(ranks),
        what=TEACHER,
    )
    set_computation(recipe, teacher.scorer.model)
    verify_weights(context, where, teacher.scorer.model, teacher.scorer, teacher.sp_group)
    return teacher


def build_logprob_check(context: BuildContext, sampling: Sampling) -> LogprobCheck:
    chosen = context.recipe.engine.mismatch_limit
    limit, usual = (MISMATCH_LIMIT[context.dtype], USUAL_MISMATCH[context.dtype]) if chosen == "auto" else (chosen, math.inf)
    return LogprobCheck(None if sampling.truncated else limit, usual, context.report.warn)


def choose_send(recipe: Recipe) -> str:
    """The key in SENDS."""
    return "hf" if recipe.engine.rollout == "hf" else recipe.engine.lora_sync


def build_placement(
    context: BuildContext, policy: PolicyLearner, engine: RolloutEngine, others: tuple[Offloadable | None, ...]
) -> Colocated:
    """others: models beside policy and engine, where there are any."""
    recipe = context.recipe
    movables = tuple(other for other in others if other)
    send = WeightSync(SENDS[choose_send(recipe)], context.ranks.gather, context.report.warn)
    mode = plan.choose_mode(recipe)
    return Colocated(policy, engine, movables, context.timer, send, mode, predicted=plan.predict_peaks(recipe))
