"""The checks of a session on a GPU, in their order, and what each may take. Sum: 30 minutes; a part: ten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.gpu import kernels, machine, parking, runs, trace, update
from tests.gpu.table import Measured


@dataclass(frozen=True)
class Check:
    """`run` gets whether it is the small form for a CPU, and a folder that all checks of a session share."""

    number: str
    name: str
    run: Callable[[bool, Path], Measured]
    part: str
    seconds: int  # after which it is ended
    question: str


CHECKS = {
    check.name: check
    for check in (
        Check("1", "machine", machine.check_machine, "part1", 30, "versions, driver, compiler: does a kernel run, can Triton compile"),
        Check("2a", "attention", kernels.check_attention, "part1", 60, "packed attention in bfloat16 beside float32, run by run"),
        Check("2b", "head", kernels.check_head, "part1", 40, "the blockwise head beside the plain one"),
        Check("2c", "liger", kernels.check_liger, "part1", 60, "Liger's head beside the plain one"),
        Check("3", "modes", runs.check_modes, "part1", 240, "grpo_math resident, sleep, sleep_and_offload: alike"),
        Check("4", "parking", parking.check_round_trip, "part1", 30, "what is offloaded comes back to the last bit, twice"),
        Check("5", "mismatch", runs.check_mismatch, "part1", 140, "0.5B: sampler beside trainer at T 1 and 0.7"),
        Check("6", "memory", runs.check_memory, "part2", 240, "1.5B, 5 steps: memory predicted and measured, steps 1 and 3"),
        Check("7", "mfu", update.check_settings, "part2", 340, "1.5B: MFU and memory of settings of DeepSpeed, the allocator and Liger"),
        Check("8", "trace", trace.check_trace, "part3", 130, "a profiler trace of two micro-batches and 20 decode steps"),
        Check("9a", "resume", runs.check_resume, "part3", 140, "stopped by SIGTERM and resumed"),
        Check("9b", "lora", runs.check_lora, "part3", 230, "7B LoRA, slept"),
        Check("9c", "adapter", runs.check_adapter, "part3", 100, "0.5B, adapters sent as such"),
    )
}
PARTS = ("part1", "part2", "part3")


def select(words: list[str]) -> list[Check]:
    """The checks of parts and names; all without any. Raises ValueError for a word that is neither."""
    unknown = [word for word in words if word not in CHECKS and word not in PARTS]
    if unknown:
        raise ValueError(f"there is no check or part {', '.join(unknown)}; checks: {', '.join(CHECKS)}; parts: {', '.join(PARTS)}")
    return [check for check in CHECKS.values() if not words or check.name in words or check.part in words]
