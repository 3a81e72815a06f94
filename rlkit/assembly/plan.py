"""What a run will do, described before anything heavy is loaded: for `dry_run=true` and the header of every run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from rlkit.assembly.capacity import explain_gpu_excess, explain_host_excess, explain_offload_excess, format_gib
from rlkit.assembly.model_files import CAUSAL_LM, CLASSIFIER, find_own_code
from rlkit.assembly.shapes import find_folder, find_shape, find_shape_of_path
from rlkit.config.eval_section import list_scored_rewards
from rlkit.config.recipe import Recipe
from rlkit.config.sections import SourceSection
from rlkit.errors import UserError
from rlkit.profiling import memory_estimate as sizes
from rlkit.profiling.host_estimate import LARGE_PROCESS, estimate_host_peaks
from rlkit.profiling.model_shape import ModelShape
from rlkit.profiling.zero_estimate import resolve_zero_stage
from rlkit.rewarding.code_packages import find_packages
from rlkit.rewarding.sandbox import SandboxUnavailable, choose_sandbox
from rlkit.rewarding.spec import TRUST
from rlkit.runtime.hardware import count_gpus, count_visible_gpus, gpu_memory, host_memory, resident_memory
from rlkit.runtime.redaction import redact_message

NO_TEST = "none (data.test is not set: evaluation is off)"
BYTES = {"float32": 4, "bfloat16": 2}


def describe_plan(recipe: Recipe) -> list[tuple[str, str]]:
    """(label, value) pairs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    samples = recipe.samples_per_step
    minibatch = -(-recipe.prompts_per_step // recipe.minibatches)
    passes = f" in {recipe.passes_per_step} passes" if recipe.passes_per_step > 1 else ""
    offline = recipe.offline_algorithm
    unit = recipe.algorithm.reads if offline else "prompts"
    each = f" x {recipe.samples_per_prompt}" if recipe.samples_per_prompt else ""
    rewards = [(name, f"{r.path}, weight {r.weight:g}") for name, r in ({} if offline else recipe.all_rewards).items()]
    trainer = f"DeepSpeed ZeRO {resolve_zero_stage(recipe.engine.zero_stage, world)}"
    return [
        ("recipe", f"{recipe.recipe}, seed {recipe.seed}"),
        ("model", describe_model(recipe)),
        *describe_teacher(recipe),
        *describe_own_code(recipe),
        ("data", f"{describe_sources(recipe.data.train)}; held out: {describe_held_out(recipe)}"),
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
        ("steps", f"{describe_steps(recipe)}, {describe_lr(recipe)}; evaluation {describe_evaluation(recipe)}"),
    ]


def describe_sandbox(recipe: Recipe) -> list[tuple[str, str]]:
    """In what unknown code will run, for recipes that grade code. Raises UserError where this machine cannot run it, or lacks a package."""
    graders = {name: reward for name, reward in list_scored_rewards(recipe).items() if reward.path == "code_tests"}
    try:
        for reward in graders.values():
            find_packages(reward.args.get("packages", ()))
        return [("sandbox", choose_sandbox().describe())] if graders else []
    except SandboxUnavailable as error:
        raise UserError(f"rewards.{next(iter(graders))} (code_tests): {error}") from error


def longest_sample(recipe: Recipe) -> int:
    return recipe.max_prompt_tokens + recipe.max_completion_tokens


def longest_context(recipe: Recipe) -> int:
    """Tokens of the longest sequence that the models see, in evaluations too."""
    own = [one.max_completion_tokens or 0 for one in recipe.eval.sets.values()]
    return recipe.max_prompt_tokens + max(recipe.max_completion_tokens, *own, 0)


def describe_held_out(recipe: Recipe) -> str:
    if recipe.data.test:
        return describe_sources(recipe.data.test)
    return "eval.sets" if recipe.eval.sets else NO_TEST


def describe_micro_batch(recipe: Recipe) -> str:
    size = recipe.engine.sequence_parallel
    return f"{recipe.tokens_per_micro_batch:,} a micro-batch" + (f" and process, {size} of which share a row" if size > 1 else "")


def describe_processes(world: int) -> str:
    return "one process" if world == 1 else f"{world} processes taking turns on the same devices"


def describe_sources(sources: Mapping[str, SourceSection]) -> str:
    """By name, with the weights where there are any."""

    def describe(name: str, source: SourceSection) -> str:
        weight = f" (weight {source.weight:g})" if source.weight else ""
        path = source.path + (f":{source.config}" if source.config else "") + (f"@{source.split}" if source.split else "")
        return f"{name + ': ' if name else ''}{path}{weight}"

    return ", ".join(describe(name, source) for name, source in sources.items())


def describe_steps(recipe: Recipe) -> str:
    return f"{recipe.data.epochs:g} times the rows" if recipe.steps is None else str(recipe.steps)


def describe_lr(recipe: Recipe) -> str:
    optim = recipe.optim
    warmup = f"{optim.warmup_steps:g} steps" if optim.warmup_steps >= 1 else f"{optim.warmup_steps:.0%} of the steps"
    return f"lr {optim.lr:g} {optim.schedule}" + (f" after a warm-up of {warmup}" if optim.warmup_steps else "")


def describe_evaluation(recipe: Recipe) -> str:
    if recipe.data.test is None:
        return "none" if not recipe.eval.sets else f"on eval.sets every {recipe.eval.every} steps"
    problems = "all" if recipe.eval.problems is None else f"at most {recipe.eval.problems:,}"
    every = f"every {recipe.eval.every} steps" if recipe.eval.every else "before and after"
    what = recipe.algorithm.reads if recipe.offline_algorithm else "problems"
    return f"on {problems} {what} {every}" + (f", pass@{recipe.eval.samples}" if recipe.eval.samples > 1 else "")


def describe_device() -> str:
    return f"{count_visible_gpus()} GPU(s)" if count_visible_gpus() else f"no GPU, {os.cpu_count()} CPU cores"


def describe_model(recipe: Recipe) -> str:
    shape = find_shape(recipe)
    return f"{recipe.model.path}{describe_size(shape) if shape else ''}{describe_adapters(recipe, shape)}, {recipe.model.dtype}"


def describe_teacher(recipe: Recipe) -> list[tuple[str, str]]:
    """Empty without one."""
    teacher = recipe.model.teacher
    if teacher.url:
        return [("teacher", f"the model at {redact_message(teacher.url)}, which is asked at the start of a run")]
    if teacher.path is None:
        return []
    shape = find_shape_of_path(teacher.path)
    return [("teacher", f"{teacher.path}{describe_size(shape) if shape else ''}, {recipe.model.dtype}")]


def describe_own_code(recipe: Recipe) -> list[tuple[str, str]]:
    """What is done with code that comes with a model: whether it runs, or transformers' class of this type stands in its place."""
    classifier = recipe.offline_algorithm and recipe.algorithm.learner == "reward_model"
    models = [("model", recipe.model.path, CLASSIFIER if classifier else CAUSAL_LM, recipe.model.trust_remote_code)]
    for name, reward in (recipe.rewards or {}).items():
        if reward.path == "reward_model":
            models.append((f"rewards.{name}.args", str(reward.args["model"]), CLASSIFIER, bool(reward.args.get(TRUST))))
    lines = []
    for key, path, auto_class, trusted in models:
        if code := find_own_code(find_folder(path), auto_class):
            done = "runs" if trusted else "does not run: transformers' own class of this model_type is used in its place"
            lines.append(("own code", f"{code} of {path} {done} ({key}.{TRUST}={str(trusted).lower()})"))
    return lines


def describe_adapters(recipe: Recipe, shape: ModelShape | None) -> str:
    """Empty where all weights are trained."""
    lora = recipe.model.lora
    if lora.rank is None:
        return ""
    place = " on attention and dense layers, not on experts" if shape and shape.experts and lora.targets == "all-linear" else ""
    size = f": {shape.adapters(lora.rank, name_targets(recipe)) / 1e6:,.1f} M" if shape else ""
    whole = f", and {', '.join(lora.modules_to_save)} whole" if lora.modules_to_save else ""
    return f", LoRA of rank {lora.rank}{place}{size}{whole}"


def describe_size(shape: ModelShape) -> str:
    """Where the numbers of the shape do not give the number of weights, both are shown."""
    size = f", {shape.parameters / 1e6:,.1f} M parameters"
    if not shape.counted:
        return f"{size} in its files (by its config.json, read as that of a Llama, {(shape.parameters - shape.others) / 1e6:,.1f} M)"
    return f"{size}, {shape.active_parameters / 1e6:,.1f} M of them for a token" if shape.experts else size


def describe_memory(recipe: Recipe) -> list[tuple[str, str]]:
    """Memory of a process at the peak of each phase, and what makes it fit where it does not."""
    job = build_job(recipe)
    if job is None:
        path = recipe.model.path if find_shape(recipe) is None else str(recipe.model.teacher.path)
        known = (find_folder(path) / "config.json").is_file()
        return [("memory", f"not known {'of models of this family' if known else 'until the model is on this disk'}; model.shape gives it")]
    gpu, excess = find_gpu_memory(recipe), find_excess(recipe)
    if gpu is None:
        lines = [("memory", f"{describe_peaks(estimate_host_peaks(job))} a process, libraries included")]
    else:
        plan = sizes.plan_memory(job, gpu, recipe.engine.memory)
        fits = "; it fits" if excess is None else ""
        size = f"{describe_peaks(plan.peaks)} of {format_gib(gpu)} a GPU; host {format_gib(plan.host)} a process"
        lines = [("memory", f"{plan.mode}: {size}{fits}")]
    if job.width < 4:
        lines.append(("gradients", describe_gradients(job)))
    forced = "; it starts all the same, by hardware.force=true" if recipe.hardware.force else ""
    return [*lines, *([("too large", f"{excess}{forced}")] if excess else [])]


def describe_peaks(peaks: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {format_gib(size)}" for phase, size in peaks.items())


def find_excess(recipe: Recipe) -> str | None:
    """Why the plan does not fit the machine, or the one that the recipe is meant for; None where it does, or where that is not known."""
    job, gpu, host = build_job(recipe), find_gpu_memory(recipe), host_memory()
    if job is None or is_for_other_nodes(recipe):
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", job.world))
    free = host and host._replace(free=min(host.total, host.free + processes * resident_memory()))  # what they hold already counts
    if gpu is None:
        return free and explain_host_excess(job, processes, free)
    plan = sizes.plan_memory(job, gpu, recipe.engine.memory)
    excess = explain_gpu_excess(plan, gpu)
    if excess or free is None or gpu_memory() is None:
        return excess
    return explain_offload_excess(plan, min(processes, count_gpus()), free)


def is_for_other_nodes(recipe: Recipe) -> bool:
    """Whether the processes of the plan run on nodes of a cluster, of which this machine need not be one, and this is none of them."""
    return (recipe.launch.nodes > 1 or bool(recipe.launch.gpus_per_node)) and "LOCAL_WORLD_SIZE" not in os.environ


def check_memory(recipe: Recipe) -> None:
    """Raises UserError where the plan does not fit this machine, unless hardware.force is set."""
    elsewhere = find_gpu_memory(recipe) is not None and gpu_memory() is None
    excess = None if recipe.hardware.force or elsewhere else find_excess(recipe)
    if excess:
        raise UserError(f"the plan does not fit into memory: {excess}; hardware.force=true starts it all the same")


def choose_mode(recipe: Recipe) -> str:
    """The memory mode: engine.memory, or what fits; resident without a GPU."""
    job, gpu = build_job(recipe), find_gpu_memory(recipe)
    if gpu is None:
        return "resident"
    if recipe.engine.memory != "auto":
        return recipe.engine.memory
    return "sleep_and_offload" if job is None else sizes.plan_memory(job, gpu).mode


def predict_peaks(recipe: Recipe) -> dict[str, float]:
    """Bytes at the peak of each phase: of a GPU, or of this process."""
    job, gpu = build_job(recipe), find_gpu_memory(recipe)
    if job is None:
        return {}
    return estimate_host_peaks(job) if gpu is None else sizes.estimate_gpu_peaks(job, choose_mode(recipe))


def is_large_on_host(recipe: Recipe) -> bool:
    """Whether this is a run without a GPU whose process takes more than LARGE_PROCESS bytes."""
    job = build_job(recipe)
    return find_gpu_memory(recipe) is None and job is not None and max(estimate_host_peaks(job).values()) > LARGE_PROCESS


def vllm_memory_share(recipe: Recipe) -> dict[str, float]:
    """The setting of vLLM's share of a GPU: what the training state on it leaves free. Empty where that is not known."""
    job, gpu = build_job(recipe), find_gpu_memory(recipe)
    if job is None or gpu is None:
        return {}
    return {"gpu_memory_utilization": round(sizes.compute_rollout_budget(job, choose_mode(recipe), gpu) / gpu, 3)}


def build_job(recipe: Recipe) -> sizes.Job | None:
    """The work of each process; None where the model's shape is not known."""
    shape, path = find_shape(recipe), recipe.model.teacher.path
    teacher = find_shape_of_path(path) if path else None
    if shape is None or (path and teacher is None):
        return None
    world = int(os.environ.get("WORLD_SIZE") or recipe.hardware.gpus or 1)
    offline = recipe.offline_algorithm
    needs = None if offline else recipe.algorithm.needs(recipe.updates_per_step)
    together = recipe.samples_of_a_prompt
    family = recipe.max_prompt_tokens + together * recipe.max_completion_tokens
    size = recipe.engine.sequence_parallel
    share = count_share(recipe, world // size, size)
    tokens = max(min(recipe.tokens_per_micro_batch, share), recipe.least_budget)
    job = sizes.Job(
        shape=shape,
        width=BYTES[name_dtype(recipe)],
        rank=recipe.model.lora.rank,
        world=world,
        stage=resolve_zero_stage(recipe.engine.zero_stage, world),
        tensor_parallel=recipe.engine.tensor_parallel,
        tokens=tokens,
        completions=tokens * together * recipe.max_completion_tokens // family,
        keys=tokens * together * longest_sample(recipe) // family,
        longest=longest_context(recipe),
        rows=-(-recipe.samples_per_step * recipe.engine.tensor_parallel // world),
        reference=needs is not None and needs.reference,  # offline it is gone before the first step
        critic=needs is not None and needs.values,
        teacher=teacher,
        samples=not offline,
        four_bits=recipe.model.load_in_4bit,
        float32_head=recipe.model.float32_head,
        offload=recipe.engine.offload == "optimizer",
        checkpointing=recipe.engine.gradient_checkpointing,
        accumulates=share > recipe.minibatches * tokens,
        engine=recipe.engine.rollout,
        new_tokens=recipe.max_completion_tokens,
        whole=count_whole(recipe, shape),
        targets=name_targets(recipe),
        float32_gradients=recipe.engine.float32_gradients is not False,
    )
    return choose_gradients(recipe, job) if recipe.engine.float32_gradients == "auto" else job


def choose_gradients(recipe: Recipe, job: sizes.Job) -> sizes.Job:
    """The job with gradients that add up in float32 where that costs nothing or fits, and else in the dtype of the weights."""
    gpu, narrow = find_gpu_memory(recipe), replace(job, float32_gradients=False)
    more = sizes.estimate_training(job) - sizes.estimate_training(narrow)
    return job if gpu is None or more <= 0 or sizes.plan_memory(job, gpu, recipe.engine.memory).fits else narrow


def accumulates_in_float32(recipe: Recipe) -> bool:
    """Where the model's shape is not known, whatever it takes."""
    job = build_job(recipe)
    return recipe.engine.float32_gradients is not False if job is None else job.float32_gradients


def describe_gradients(job: sizes.Job) -> str:
    """In which dtype they add up, what the sum takes, and what the other dtype would."""
    other = replace(job, float32_gradients=not job.float32_gradients)
    names = ("float32", "bfloat16") if job.zero.is_widened else ("bfloat16", "float32")
    more = sizes.estimate_training(other) - sizes.estimate_training(job)
    size = f"{format_gib(abs(more))} {'more' if more > 0 else 'less'}"
    return f"add up in {names[0]}, {format_gib(job.zero.gradients)} a process; an update in {names[1]} takes {size}"


def name_targets(recipe: Recipe) -> tuple[str, ...] | None:
    """The layers that get adapters, where the recipe names them; None: all linear ones."""
    targets = recipe.model.lora.targets
    return None if isinstance(targets, str) else targets


def count_whole(recipe: Recipe, shape: ModelShape) -> int:
    """Weights of the layers in model.lora.modules_to_save. A layer with another name counts as a norm."""
    ends = shape.vocab * shape.hidden
    known = {"lm_head": ends, "embed_tokens": ends, "experts": shape.count_experts(shape.experts) - shape.count_experts(0)}
    names = recipe.model.lora.modules_to_save if recipe.model.lora.rank else ()
    return sum(known.get(name.rpartition(".")[2], shape.hidden) for name in names)


def count_share(recipe: Recipe, groups: int, size: int) -> int:
    """The most tokens that a process can get of a step, with so many sequence-parallel groups of so many processes."""
    samples, together = -(-recipe.samples_per_step // max(groups, 1)), recipe.samples_of_a_prompt
    prompts = min(samples, -(-samples // together) + (groups > 1))  # several groups may share a prompt
    return (prompts * recipe.max_prompt_tokens + samples * recipe.max_completion_tokens) // size


def name_dtype(recipe: Recipe) -> str:
    return recipe.model.dtype if recipe.model.dtype != "auto" else ("float32" if find_gpu_memory(recipe) is None else "bfloat16")


def find_gpu_memory(recipe: Recipe) -> float | None:
    """Of one GPU: this machine's; hardware.gpu_gib where that is not known, and in a dry run where there is none; None: a run without."""
    planned = recipe.hardware.gpu_gib if recipe.dry_run or count_visible_gpus() else None
    return gpu_memory() or (planned * 2**30 if planned else None)
