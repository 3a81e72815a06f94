"""Room for a micro-batch: the largest is tried before training, its token budget halved until it fits; memory that runs out later ends
the attempt, and the next one begins with half. All ranks do the same work, so what does not fit on one fits on none, mostly."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rlkit.engines.base import Learner
from rlkit.errors import RunFailed, UserError
from rlkit.types import Key, Sample, Stop

KEPT = "tokens_per_micro_batch"  # the file in a run's folder that holds a budget smaller than the recipe's
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of torch's allocator on a CPU, of CUDA, of cuBLAS
HINTS = (
    "engine.gradient_checkpointing=1, engine.zero_stage=3 and, with several processes, engine.sequence_parallel need less, "
    "and so do shorter samples (max_completion_tokens)"
)


def largest_micro_batch(
    models: Sequence[Learner],
    budget: int,
    prompt: int,
    completion: int,
    together: int,
    share: int,
    anyone: Callable[[bool], bool],
    least: int,
    crew: tuple[int, int] = (1, 0),
) -> tuple[int, int | None]:
    """The budget with which the largest micro-batch fits, and the one that did not, if any.

    prompt, completion: tokens of the longest sample; together: samples of a prompt; share: tokens of a step that a rank can have at most;
    `anyone`: was it so on any rank? least: a rank's tokens of what is never split, a sample or a pair; crew: how many ranks share each
    row, and which of them this is. Raises UserError where not even that fits.
    """
    failed = None
    while True:
        tried = max(min(budget, share), least)
        size, place = crew
        if not anyone(not fits(models, longest_samples(tried * size, prompt, completion, together)[place::size])):
            return budget, failed
        if tried == least:
            raise UserError(
                f"the longest samples, max_prompt_tokens + max_completion_tokens, do not fit into memory ({least} tokens); {HINTS}"
            )
        failed = budget if failed is None else failed
        budget = max(tried // 2, least)


def asked_together(
    meet: Callable[[], bool], anyone: Callable[[bool], bool], folder: Path, budget: int, least: int
) -> Callable[[bool], bool]:
    """`anyone`, of ranks that all `meet` first: those that share weights or rows wait where one of them has run out of memory alone."""

    def asked(failed: bool) -> bool:
        if not meet() and failed:
            raise RunFailed(ended(folder, "trying the largest micro-batch, and on this process alone,", budget, least))
        return anyone(failed)

    return asked


def fits(models: Sequence[Learner], samples: Sequence[Sample]) -> bool:
    try:
        for model in models:
            model.trial(samples)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    else:
        return True
    gc.collect()  # here the failed pass and its tensors are nobody's any more
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def longest_samples(tokens: int, prompt: int, completion: int, together: int) -> list[Sample]:
    """Samples as long as any can be, so many of a prompt and of so many tokens with each prompt once."""
    said = torch.zeros(completion)
    ids, ones, versions = said.long(), torch.ones(completion, dtype=torch.bool), said.int()
    whole, left = divmod(tokens, prompt + together * completion)
    count = whole * together + max(left - prompt, 0) // completion
    return [
        Sample(Key(i // together, 0, i), (*numbered(i // together), *(0,) * prompt)[:prompt], ids, ones, said, versions, Stop.LENGTH, "")
        for i in range(count)
    ]


def numbered(prompt: int) -> tuple[int, int]:
    """Tokens that set prompts apart, in any vocabulary."""
    return prompt % 100, prompt // 100 % 100


def remembered(folder: Path, budget: int) -> int:
    """The budget of a run in a folder: the recipe's, or the smaller one that an earlier attempt left there."""
    kept = folder / KEPT
    return min(budget, int(kept.read_text())) if kept.is_file() else budget


def engine_ended(phase: str) -> str:
    """What to say when memory ran out in a phase of the rollout engine."""
    return (
        f"memory ran out in the phase {phase}: give the rollout engine less (engine.vllm.gpu_memory_utilization, "
        f"engine.vllm.max_num_seqs); {HINTS}"
    )


def ended(folder: Path, phase: str, budget: int, least: int) -> str:
    """What to say when memory ran out in a phase of the trainer; the next attempt will find half of the budget in the folder."""
    if budget <= least:
        return f"memory ran out in the phase {phase}, with one sample a micro-batch; {HINTS}"
    half = max(budget // 2, least)
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f".{KEPT}.tmp"  # a kill while it is written leaves no half of a number
    whole.write_text(str(half))
    whole.replace(folder / KEPT)
    return (
        f"memory ran out in the phase {phase} with tokens_per_micro_batch={budget}; start again with output_dir={folder}, and the run goes "
        f"on from its last checkpoint with {half}"
    )
