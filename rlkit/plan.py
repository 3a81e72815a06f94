"""What a run will do, told before anything heavy is loaded: `dry_run=true`, and the header of every run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from rlkit.recipe import Recipe, SourceSection

BYTES = {"float32": 4, "bfloat16": 2}


def lines(recipe: Recipe) -> list[tuple[str, str]]:
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
    trainer = f"DeepSpeed ZeRO {max(recipe.engine.zero_stage, 1)}"
    return [
        ("recipe", f"{recipe.recipe}, seed {recipe.seed}"),
        ("model", model(recipe)),
        ("data", f"{places(recipe.data.train)}; held out: {places(test) if test else 'none'}"),
        *([("rewards", ", ".join(f"{name} ({told})" for name, told in rewards))] if rewards else []),
        ("algorithm", recipe.algorithm.name),
        ("step", f"{recipe.prompts_per_step} {unit}{each} = {samples:,} {'completions' if offline else 'samples'}"),
        (
            "tokens",
            f"at most {longest(recipe):,} a sample, {samples * longest(recipe):,} a step, {recipe.tokens_per_micro_batch:,} a micro-batch",
        ),
        ("update", f"{recipe.updates_per_step} a step{passes}, on {minibatch} {unit} each"),
        ("engines", f"{trainer if offline else f'{recipe.engine.rollout} and {trainer}'}, {processes(world)}, {device()}"),
        ("memory", memory(recipe, world)),
        ("steps", f"{steps(recipe)}, lr {recipe.optim.lr:g} {recipe.optim.schedule}; evaluation {evaluation(recipe)}"),
    ]


def longest(recipe: Recipe) -> int:
    return recipe.max_prompt_tokens + recipe.max_completion_tokens


def processes(world: int) -> str:
    return "one process" if world == 1 else f"{world} processes taking turns on the same devices"


def places(sources: Mapping[str, SourceSection]) -> str:
    """By name, with the weights where there are any."""

    def said(name: str, source: SourceSection) -> str:
        weight = f" (weight {source.weight:g})" if source.weight else ""
        return f"{name + ': ' if name else ''}{source.path}{'@' + source.split if source.split else ''}{weight}"

    return ", ".join(said(name, source) for name, source in sources.items())


def steps(recipe: Recipe) -> str:
    return f"{recipe.data.epochs:g} times the rows" if recipe.steps is None else str(recipe.steps)


def evaluation(recipe: Recipe) -> str:
    if recipe.data.test is None:
        return "none"
    problems = "all" if recipe.eval.problems is None else f"{recipe.eval.problems:,}"
    every = f"every {recipe.eval.every} steps" if recipe.eval.every else "before and after"
    what = recipe.algorithm.reads if recipe.offline_algorithm else "problems"
    return f"on {problems} {what} {every}" + (f", pass@{recipe.eval.samples}" if recipe.eval.samples > 1 else "")


def device() -> str:
    return f"{gpus()} GPU(s)" if gpus() else f"no GPU, {os.cpu_count()} CPU cores"


def gpus() -> int:
    """Those that this machine has, without starting CUDA."""
    listed = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0
    if listed == 0 and Path("/dev/nvidia0").exists():
        listed = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return listed


def model(recipe: Recipe) -> str:
    parameters = parameter_count(recipe.model.path)
    size = f", {parameters / 1e6:,.1f} M parameters" if parameters else ""
    return f"{recipe.model.path}{size}, {recipe.model.dtype}"


def parameter_count(path: str) -> int | None:
    """Of a Hugging Face folder, from the headers of its weight files; None where the folder is not on this disk."""
    if path == "builtin":
        from rlkit.builtin.model import PARAMETERS

        return PARAMETERS
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return sum(header_count(file) for file in files) or None


def header_count(file: Path) -> int:
    """Numbers in a safetensors file: its header says the shapes."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            count = 1
            for side in entry["shape"]:
                count *= side
            total += count
    return total


def memory(recipe: Recipe, world: int) -> str:
    """Of weights and optimizer state, a process, before activations and caches."""
    parameters = parameter_count(recipe.model.path)
    if parameters is None:
        return "known once the model is on this disk"
    dtype = recipe.model.dtype if recipe.model.dtype != "auto" else ("bfloat16" if "GPU(s)" in device() else "float32")
    stage = max(recipe.engine.zero_stage, 1)
    width = BYTES[dtype]
    weights = parameters * width / (world if stage == 3 else 1)
    gradients = parameters * width / (world if stage >= 2 else 1)
    masters = parameters * (12 if dtype == "bfloat16" else 8) / world  # fp32 masters where the weights are not, and two moments
    rollout = "" if recipe.offline_algorithm else f", rollout engine {gib(parameters * width)} of weights"
    return f"policy {gib(weights + gradients + masters)} a process{rollout}"


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
