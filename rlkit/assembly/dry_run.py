"""What dry_run=true finds and shows beside the plan: whether data and rewards load, the number of rows, a prompt, the least time of a step.

Nothing is asked of a network, and no weights are loaded. Left out: datasets and models of the hub that are not on this disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlkit.assembly import plan
from rlkit.assembly.data_view import TextView, find_renderer
from rlkit.assembly.datasets import choose_kind, open_sources
from rlkit.assembly.environment import describe_loaded
from rlkit.assembly.eval_sets import describe_sets
from rlkit.assembly.rewards import list_in_process_rewards
from rlkit.assembly.teacher import compare_folders
from rlkit.config.eval_section import list_scored_rewards
from rlkit.config.recipe import ENVIRONMENT, Recipe
from rlkit.data.columns import RowReader
from rlkit.data.rows import show
from rlkit.profiling.roofline import KNOWN_GPUS, DeviceLimits, Roofline, measure_device
from rlkit.report.signing import load_signer
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.resolve import list_shipped_rewards, locate_reward
from rlkit.rewarding.spec import RewardSpec

SHOWN_CHARACTERS = 600  # of a prompt
MOST_SAMPLES = 1_000_000  # of a step whose time is estimated
GPUS_BY_GIB = {24: "NVIDIA GeForce RTX 4090", 40: "NVIDIA A100-SXM4-40GB", 80: "NVIDIA H100 80GB HBM3", 141: "NVIDIA H200"}


def describe_dry_run(recipe: Recipe) -> list[tuple[str, str]]:
    """(label, value) pairs. Raises UserError for data, rewards, a prompt or a key that a run would refuse."""
    load_signer(recipe.report.audit_key, Path(recipe.output_dir or "runs"))
    check_rewards(recipe)
    readers = open_sources(recipe, choose_kind(recipe), without_hub=True)
    if recipe.model.teacher.path and (renderer := find_renderer(recipe)):
        compare_folders(recipe, renderer)
    found = [*describe_rows(readers), *describe_prompt(recipe, readers["train"])]
    loaded = describe_loaded(recipe, find_renderer(recipe)) if recipe.environment.path else []
    return [*describe_sets(recipe), *found, *loaded, *describe_time(recipe)]


def check_rewards(recipe: Recipe) -> None:
    """Raises UserError for a reward that is not there, does not load, or has not the function. Its file is imported in a worker process."""
    rewards = {name: reward for name, reward in list_scored_rewards(recipe).items() if reward.path != ENVIRONMENT}
    in_process = list_in_process_rewards(recipe) if rewards else []
    for name, reward in rewards.items():
        if name not in in_process:
            locate_reward(reward.path)
    own = {name: reward for name, reward in rewards.items() if needs_trial(reward) and name not in in_process}
    if own and recipe.rewarding is not None:
        with RewardClient(own, recipe.rewarding.model_copy(update={"workers": 1})) as client:
            client.wait_until_ready()


def needs_trial(reward: RewardSpec) -> bool:
    """Whether a reward may fail to load: one that comes with rlkit loads with its defaults."""
    return bool(reward.args) or reward.path not in list_shipped_rewards()


def describe_rows(readers: Mapping[str, Sequence[RowReader[Any]]]) -> Iterator[tuple[str, str]]:
    counts = [f"{split} {sum(map(len, found)):,}" for split, found in readers.items() if found]
    yield "rows", ", ".join(counts) if counts else "not looked at: the data is a dataset of the hub, which a run downloads"


def describe_prompt(recipe: Recipe, readers: Sequence[RowReader[Any]]) -> Iterator[tuple[str, str]]:
    """The first prompt as the model gets it, where its tokenizer is on this disk, and what answers it."""
    if not readers:
        return
    row, renderer = readers[0].read(0), find_renderer(recipe)
    if renderer is None:
        chat = row.prompt if isinstance(row.prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in row.prompt)
        view = TextView(chat, 0)
    else:
        ids = renderer.encode_prompt(row.prompt, row.tools)
        view = TextView(renderer.decode(ids, special=True), len(ids))
    size = f"{view.tokens} tokens" if renderer else "the chat template is not on this disk yet"
    yield "first prompt", f"({size}) {view.text[:SHOWN_CHARACTERS]!r}{' ...' if len(view.text) > SHOWN_CHARACTERS else ''}"
    answers = [message["content"] for message in row.completions] if recipe.offline_algorithm else [row.answer]
    yield (
        "its answer",
        " / ".join(show(answer, SHOWN_CHARACTERS) for answer in answers) if answers != [None] else "none: no reward asks for one",
    )


def describe_time(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The least seconds of a step, each sample as long as it may be."""
    job = plan.build_job(recipe)
    if job is None or not job.shape.counted or recipe.steps == 0 or recipe.samples_per_step > MOST_SAMPLES:
        return
    limits, device = find_limits(recipe)
    roofline = Roofline(job, limits)
    samples = recipe.samples_of_a_prompt
    prompts = -(-recipe.prompts_per_step // max(1, job.world // recipe.engine.sequence_parallel))  # of a process
    request = (recipe.max_prompt_tokens, [recipe.max_completion_tokens] * samples)
    seconds = {}
    if not recipe.offline_algorithm:
        needs = recipe.algorithm.needs(recipe.updates_per_step)
        seconds["rollout"] = roofline.rollout([[request] * prompts * job.tensor_parallel])
        seconds["observe"] = roofline.observe([request] * prompts, needs.old_logprobs + needs.reference, needs.values)
    seconds["update"] = roofline.update([request] * prompts * recipe.passes_per_step, critic=job.critic) / recipe.engine.sequence_parallel
    parts = ", ".join(f"{phase} {format_seconds(value)}" for phase, value in seconds.items() if value)
    yield (
        "least time",
        f"{format_seconds(sum(seconds.values()))} a step on {device}, were every sample as long as it may be: {parts}",
    )


def find_limits(recipe: Recipe) -> tuple[DeviceLimits, str]:
    """The limits of this machine, or of the known GPU whose memory is nearest to that of the plan, and its name."""
    gpu = plan.find_gpu_memory(recipe)
    if gpu is None:
        return measure_device(torch.device("cpu"), torch.float32), "this machine"
    name = GPUS_BY_GIB[min(GPUS_BY_GIB, key=lambda size: abs(size - gpu / 2**30))]
    return KNOWN_GPUS[name], f"a GPU such as {name}"


def format_seconds(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.2g} s"
