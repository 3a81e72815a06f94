"""What a run will do, described before anything heavy is loaded: for `dry_run=true` and the header of every run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.config.recipe import Recipe
from rlkit.config.sections import ShapeSection, SourceSection
from rlkit.errors import UserError
from rlkit.profiling import memory_estimate as sizes
from rlkit.rewarding.code_packages import find_packages
from rlkit.rewarding.sandbox import SandboxUnavailable, choose_sandbox
from rlkit.runtime.hardware import count_gpus, gpu_memory

NO_TEST = "none (data.test is not set: evaluation is off)"
BYTES = {"float32": 4, "bfloat16": 2}


def describe_plan(recipe: Recipe) -> list[tuple[str, str]]:
    """(label, value) pairs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    samples = recipe.samples_per_step
    minibatch = -(-recipe.prompts_per_step // recipe.minibatches)
    passes = f" in {recipe.passes_per_step} passes" if recipe.passes_per_step > 1 else ""
    test = recipe.data.test
    offline = recipe.offline_algorithm
    unit = recipe.algorithm.reads if offline else "prompts"
    each = f" x {recipe.samples_per_prompt}" if recipe.samples_per_prompt else ""
    rewards = [(name, f"{r.path}, weight {r.weight:g}") for name, r in (recipe.rewards or {}).items()]
    trainer = f"DeepSpeed ZeRO {sizes.resolve_zero_stage(recipe.engine.zero_stage, world)}"
    return [
        ("recipe", f"{recipe.recipe}, seed {recipe.seed}"),
        ("model", describe_model(recipe)),
        ("data", f"{describe_sources(recipe.data.train)}; held out: {describe_sources(test) if test else NO_TEST}"),
        *([("rewards", ", ".join(f"{name} ({text})" for name, text in rewards))] if rewards else []),
        *describe_sandbox(recipe),
        ("algorithm", recipe.algorithm.name),
        ("step", f"{recipe.prompts_per_step} {unit}{each} = {samples:,} {'completions' if offline else 'samples'}"),
        (
            "tokens",
            f"at most {longest_sample(recipe):,} a sample, {samples * longest_sample(recipe):,} a step, {describe_micro_batch(recipe)}",
        ),
        ("update", f"{recipe.updates_per_step} a step{passes}, on {minibatch} {unit} each"),
        (
            "engines",
            f"{trainer if offline else f'{recipe.engine.rollout} and {trainer}'}, {describe_processes(world)}, {describe_device()}",
        ),
        *describe_memory(recipe),
        ("steps", f"{describe_steps(recipe)}, lr {recipe.optim.lr:g} {recipe.optim.schedule}; evaluation {describe_evaluation(recipe)}"),
    ]


def describe_sandbox(recipe: Recipe) -> list[tuple[str, str]]:
    """In what unknown code will run, for recipes that grade code. Raises UserError where this machine cannot run it, or lacks a package."""
    graders = {name: reward for name, reward in (recipe.rewards or {}).items() if reward.path == "code_tests"}
    try:
        for reward in graders.values():
            find_packages(reward.args.get("packages", ()))
        return [("sandbox", choose_sandbox().describe())] if graders else []
    except SandboxUnavailable as error:
        raise UserError(f"rewards.{next(iter(graders))} (code_tests): {error}") from error


def longest_sample(recipe: Recipe) -> int:
    return recipe.max_prompt_tokens + recipe.max_completion_tokens


def describe_micro_batch(recipe: Recipe) -> str:
    size = recipe.engine.sequence_parallel
    return f"{recipe.tokens_per_micro_batch:,} a micro-batch" + (f" and process, {size} of which share a row" if size > 1 else "")


def describe_processes(world: int) -> str:
    return "one process" if world == 1 else f"{world} processes taking turns on the same devices"


def describe_sources(sources: Mapping[str, SourceSection]) -> str:
    """By name, with the weights where there are any."""

    def describe(name: str, source: SourceSection) -> str:
        weight = f" (weight {source.weight:g})" if source.weight else ""
        return f"{name + ': ' if name else ''}{source.path}{'@' + source.split if source.split else ''}{weight}"

    return ", ".join(describe(name, source) for name, source in sources.items())


def describe_steps(recipe: Recipe) -> str:
    return f"{recipe.data.epochs:g} times the rows" if recipe.steps is None else str(recipe.steps)


def describe_evaluation(recipe: Recipe) -> str:
    if recipe.data.test is None:
        return "none"
    problems = "all" if recipe.eval.problems is None else f"{recipe.eval.problems:,}"
    every = f"every {recipe.eval.every} steps" if recipe.eval.every else "before and after"
    what = recipe.algorithm.reads if recipe.offline_algorithm else "problems"
    return f"on {problems} {what} {every}" + (f", pass@{recipe.eval.samples}" if recipe.eval.samples > 1 else "")


def describe_device() -> str:
    return f"{count_gpus()} GPU(s)" if count_gpus() else f"no GPU, {os.cpu_count()} CPU cores"


def describe_model(recipe: Recipe) -> str:
    shape, rank = find_shape(recipe), recipe.model.lora.rank
    size = f", {shape.parameters / 1e6:,.1f} M parameters" if shape else ""
    trained = "" if rank is None else f", LoRA of rank {rank}" + (f": {shape.adapters(rank) / 1e6:,.1f} M" if shape else "")
    return f"{recipe.model.path}{size}{trained}, {recipe.model.dtype}"


def describe_memory(recipe: Recipe) -> list[tuple[str, str]]:
    """Memory of a process at the peak of each phase, and what makes it fit where it does not."""
    job = build_job(recipe)
    if job is None:
        return [("memory", "known once the model is on this disk, or with model.shape")]
    gpu = find_gpu_memory(recipe)
    if gpu is None:
        peaks = ", ".join(f"{phase} {format_gib(size)}" for phase, size in sizes.estimate_host_peaks(job).items())
        return [("memory", f"{peaks} a process, beside what the libraries take")]
    plan = sizes.plan_memory(job, gpu, recipe.engine.memory)
    peaks = ", ".join(f"{phase} {format_gib(size)}" for phase, size in plan.peaks.items())
    lines = [("memory", f"{plan.mode}: {peaks} of {format_gib(gpu)} a GPU; host {format_gib(plan.host)} a process")]
    if not plan.fits:
        remedy = f"{plan.change} makes it fit" if plan.change else "nothing here makes it fit"
        lines.append(("too large", f"the phase {plan.largest_phase} does not fit; {remedy}"))
    return lines


def choose_mode(recipe: Recipe) -> str:
    """The memory mode: engine.memory, or what fits; resident without a GPU."""
    job, gpu = build_job(recipe), find_gpu_memory(recipe)
    if gpu is None:
        return "resident"
    if recipe.engine.memory != "auto":
        return recipe.engine.memory
    return "sleep_and_offload" if job is None else sizes.plan_memory(job, gpu).mode


def predict_peaks(recipe: Recipe) -> dict[str, float]:
    """Bytes at the peak of each phase: of a GPU, or of this process beside what the libraries take."""
    job, gpu = build_job(recipe), gpu_memory()
    if job is None:
        return {}
    return sizes.estimate_host_peaks(job) if gpu is None else sizes.estimate_gpu_peaks(job, choose_mode(recipe))


def vllm_memory_share(recipe: Recipe) -> dict[str, float]:
    """The setting of vLLM's share of a GPU: what the training state on it leaves free. Empty where that is not known."""
    job, gpu = build_job(recipe), gpu_memory()
    if job is None or gpu is None:
        return {}
    return {"gpu_memory_utilization": round(sizes.compute_rollout_budget(job, choose_mode(recipe), gpu) / gpu, 3)}


def build_job(recipe: Recipe) -> sizes.Job | None:
    """The work of each process; None where the model's shape is not known."""
    shape = find_shape(recipe)
    if shape is None:
        return None
    world = int(os.environ.get("WORLD_SIZE") or recipe.hardware.gpus or 1)
    offline = recipe.offline_algorithm
    needs = None if offline else recipe.algorithm.needs(recipe.updates_per_step)
    together = recipe.samples_of_a_prompt
    family = recipe.max_prompt_tokens + together * recipe.max_completion_tokens
    return sizes.Job(
        shape=shape,
        width=BYTES[name_dtype(recipe)],
        rank=recipe.model.lora.rank,
        world=world,
        stage=sizes.resolve_zero_stage(recipe.engine.zero_stage, world),
        tensor_parallel=recipe.engine.tensor_parallel,
        tokens=recipe.tokens_per_micro_batch,
        completions=recipe.tokens_per_micro_batch * together * recipe.max_completion_tokens // family,
        keys=recipe.tokens_per_micro_batch * together * longest_sample(recipe) // family,
        longest=longest_sample(recipe),
        rows=-(-recipe.samples_per_step * recipe.engine.tensor_parallel // world),
        reference=needs is not None and needs.reference,  # offline it is gone before the first step
        critic=needs is not None and needs.values,
        samples=not offline,
        four_bits=recipe.model.load_in_4bit,
        offload=recipe.engine.offload == "optimizer",
        checkpointing=recipe.engine.gradient_checkpointing,
    )


def name_dtype(recipe: Recipe) -> str:
    return recipe.model.dtype if recipe.model.dtype != "auto" else ("float32" if find_gpu_memory(recipe) is None else "bfloat16")


def find_shape(recipe: Recipe) -> sizes.ModelShape | None:
    """From model.shape, the built-in model, or the config.json of a folder."""
    if recipe.model.path == "builtin":
        from rlkit.builtin import model as builtin

        heads = builtin.HIDDEN // builtin.HEAD
        sides = (builtin.HIDDEN, builtin.INTERMEDIATE, builtin.LAYERS, heads, heads, builtin.HEAD, builtin.VOCABULARY)
        return sizes.ModelShape(*sides, tied=True, qk_norm=True)
    if recipe.model.shape is not None:
        return sizes.ModelShape(**recipe.model.shape.model_dump())
    file = Path(recipe.model.path) / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
        return read_shape(config) if config.keys() >= SHAPE_KEYS else None  # of another family: known once it is loaded
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:  # of a file that is damaged
        raise UserError(f"{file} is not the configuration of a model: {error}; download the model again, or set model.path") from error


SHAPE_KEYS = {"num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"}


def read_shape(config: dict[str, Any]) -> sizes.ModelShape:
    """The shape in a Hugging Face configuration. Raises ValueError where a number is none."""
    heads = config["num_attention_heads"]
    kind = str(config.get("model_type"))
    shape = ShapeSection(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind.startswith("qwen2") or bool(config.get("attention_bias", False)),
        qk_norm=kind.startswith("qwen3"),
    )
    return sizes.ModelShape(**shape.model_dump())


def find_gpu_memory(recipe: Recipe) -> float | None:
    """Of one GPU: this machine's, or the one that the recipe is meant for; None: a run without."""
    return gpu_memory() or (recipe.hardware.gpu_gib * 2**30 if recipe.hardware.gpu_gib else None)


def format_gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
