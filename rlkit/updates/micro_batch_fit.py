"""Finds the largest micro-batch that fits into memory.

It is tried before training, and its token budget is halved until it fits. When memory runs out later, the attempt ends, and the next one
starts with half. All ranks do the same work, so what does not fit on one mostly fits on none.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlkit.engines.base import Learner
from rlkit.errors import RunFailed, UserError
from rlkit.types import Key, Sample, Stop

BUDGET_FILE = "tokens_per_micro_batch"  # in a run's folder: a budget smaller than the recipe's
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of torch's allocator on a CPU, of CUDA, of cuBLAS
HINTS = (
    "engine.gradient_checkpointing=1, engine.zero_stage=3 and, with several processes, engine.sequence_parallel need less, "
    "and so do shorter samples (max_completion_tokens)"
)


@dataclass(frozen=True)
class StepShape:
    """The largest samples of a step, in tokens; share: the most that a rank can get; least: what is never split, a sample or a pair."""

    prompt: int
    completion: int
    samples_per_prompt: int
    share: int
    least: int


def largest_micro_batch(
    learners: Sequence[Learner], budget: int, step: StepShape, any_rank: Callable[[bool], bool], sp: tuple[int, int] = (1, 0)
) -> tuple[int, int | None]:
    """The budget with which the largest micro-batch fits, and the first one that did not, if any.

    any_rank: whether a flag is true on any rank; sp: size of the sequence-parallel group, and this rank's place in it. Raises UserError
    where not even `step.least` fits.
    """
    failed = None
    while True:
        tried = max(min(budget, step.share), step.least)
        size, place = sp
        samples = longest_samples(tried * size, step.prompt, step.completion, step.samples_per_prompt)
        if not any_rank(not fits_in_memory(learners, samples[place::size])):
            return budget, failed
        if tried == step.least:
            raise UserError(
                f"the longest samples, max_prompt_tokens + max_completion_tokens, do not fit into memory ({step.least} tokens); {HINTS}"
            )
        failed = budget if failed is None else failed
        budget = max(tried // 2, step.least)


def any_rank_after_barrier(
    barrier: Callable[[], bool], any_rank: Callable[[bool], bool], folder: Path, budget: int, least: int
) -> Callable[[bool], bool]:
    """`any_rank` after a `barrier` of all ranks that returns False on a timeout.

    Ranks that share weights or rows wait for each other where one of them alone has run out of memory; then that one raises RunFailed.
    """

    def meet_and_ask(failed: bool) -> bool:
        if not barrier() and failed:
            raise RunFailed(halve_budget(folder, "trying the largest micro-batch, and on this process alone,", budget, least))
        return any_rank(failed)

    return meet_and_ask


def fits_in_memory(learners: Sequence[Learner], samples: Sequence[Sample]) -> bool:
    try:
        try_beside_update(learners, samples)
        fits = True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    gc.collect()  # now nothing refers to a failed pass and its tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits


def try_beside_update(learners: Sequence[Learner], samples: Sequence[Sample]) -> None:
    """Each learner's passes, beside the moments, gradients and buckets of all, which the first update allocates."""
    reserved = [learner.reserve_update() for learner in learners]
    for learner in learners:
        learner.try_samples(samples)
    del reserved


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def longest_samples(tokens: int, prompt: int, completion: int, samples_per_prompt: int) -> list[Sample]:
    """Samples of the greatest length, as many of each prompt as a step has, of so many tokens with each prompt once."""
    zeros = torch.zeros(completion)
    ids, ones, versions = zeros.long(), torch.ones(completion, dtype=torch.bool), zeros.int()
    whole, left = divmod(tokens, prompt + samples_per_prompt * completion)
    count = whole * samples_per_prompt + max(left - prompt, 0) // completion
    samples = []
    for i in range(count):
        row = i // samples_per_prompt
        own_prompt = (row % 100, row // 100 % 100, *(0,) * prompt)[:prompt]  # different prompts, with ids of any vocabulary
        samples.append(Sample(Key(row, 0, i), own_prompt, ids, ones, zeros, versions, Stop.LENGTH, ""))
    return samples


def read_budget(folder: Path, budget: int) -> int:
    """The budget of a run: the recipe's, or the smaller one that an earlier attempt wrote into the folder."""
    file = folder / BUDGET_FILE
    return min(budget, int(file.read_text())) if file.is_file() else budget


def explain_rollout_memory(phase: str) -> str:
    """The message when memory ran out in a phase of the rollout engine."""
    return (
        f"memory ran out in the phase {phase}: give the rollout engine less (engine.vllm.gpu_memory_utilization, "
        f"engine.vllm.max_num_seqs); {HINTS}"
    )


def halve_budget(folder: Path, phase: str, budget: int, least: int) -> str:
    """Writes half of the budget into the folder for the next attempt; returns the message when memory ran out in a phase of the trainer."""
    if budget <= least:
        return f"memory ran out in the phase {phase}, with one sample a micro-batch; {HINTS}"
    half = max(budget // 2, least)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{BUDGET_FILE}.tmp"  # a kill while it is written leaves no half of a number
    unfinished.write_text(str(half))
    unfinished.replace(folder / BUDGET_FILE)
    return (
        f"memory ran out in the phase {phase} with tokens_per_micro_batch={budget}; start again with output_dir={folder}, and the run goes "
        f"on from its last checkpoint with {half}"
    )
