"""The roofline of a phase: the least seconds that the samples of a step need on this machine.

It is bytes over bandwidth or operations over peak, whichever is more. Letters: a sample has P prompt and L completion tokens; its last
token is never an input, so P + L - 1 tokens go through the layers and L outputs through the head. b bytes of a weight.

Left out, so that it stays a lower bound: rewards, padding, recomputed activations, the work of the optimizer, communication of ranks.
The reload of the training state has no roofline either: its copies overlap with later phases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlkit.profiling.memory_estimate import Job
from rlkit.profiling.model_shape import ModelShape

PromptLengths = tuple[int, Sequence[int]]  # P of a prompt, and L of each of its completions


@dataclass(frozen=True)
class DeviceLimits:
    """The limits of one device, for one second."""

    operations: float  # of matrix products in the dtype of the weights; an addition and a multiplication are two
    bandwidth: float  # bytes from or to its memory
    bus: float  # bytes between it and the host, one way


GEN4, GEN5 = 31.5e9, 63.0e9  # PCIe, 16 lanes, with 128b/130b encoding
KNOWN_GPUS = {  # bfloat16, dense, by the name in CUDA; NVIDIA's data sheets of H200, H100, A100, L40S, and the Ada white paper
    "NVIDIA H200": DeviceLimits(989e12, 4.8e12, GEN5),
    "NVIDIA H100 80GB HBM3": DeviceLimits(989e12, 3.35e12, GEN5),
    "NVIDIA H100 PCIe": DeviceLimits(756e12, 2.0e12, GEN5),
    "NVIDIA A100-SXM4-80GB": DeviceLimits(312e12, 2.039e12, GEN4),
    "NVIDIA A100 80GB PCIe": DeviceLimits(312e12, 1.935e12, GEN4),
    "NVIDIA A100-SXM4-40GB": DeviceLimits(312e12, 1.555e12, GEN4),
    "NVIDIA L40S": DeviceLimits(362e12, 0.864e12, GEN4),
    "NVIDIA GeForce RTX 4090": DeviceLimits(165.2e12, 1.008e12, GEN4),
}
MATRIX_SIDE = {"cpu": 512, "cuda": 8192}  # of the square matrices that a measurement multiplies
READ_BYTES = {"cpu": 2**25, "cuda": 2**30}  # that a measurement reads
TRIES = 8


def find_device_limits(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """A known GPU from its data sheet; any other device or dtype is measured, in about 0.1 s."""
    if device.type == "cuda" and dtype == torch.bfloat16 and (known := KNOWN_GPUS.get(torch.cuda.get_device_name(device))):
        return known
    return measure_device(device, dtype)


def measure_device(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """Measures a device: the best of TRIES. The bus is that of a fast GPU, so a slower bus shows as time that can be saved."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    square = torch.ones(MATRIX_SIDE[kind], MATRIX_SIDE[kind], device=device, dtype=dtype)
    vector = torch.ones(READ_BYTES[kind] // 4, device=device)
    products, reads = measure_shortest(lambda: square @ square, device), measure_shortest(vector.sum, device)
    return DeviceLimits(2 * MATRIX_SIDE[kind] ** 3 / products, READ_BYTES[kind] / reads, GEN5)


def measure_shortest(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of the fastest of TRIES calls, after one call to warm up."""
    seconds = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def count_flops(shape: ModelShape, inputs: Sequence[int], outputs: int) -> float:
    """Operations of a forward pass over samples of so many `inputs`, with `outputs` tokens through the head.

    2 for each weight and token, of experts only those that it goes through; in attention 2 for each layer, number of a query and of a
    value, and pair of tokens where one attends to the other.
    """
    pairs = sum(n * (n + 1) // 2 for n in inputs)
    linear = 2.0 * (shape.active_linear * sum(inputs) + shape.hidden * shape.vocab * outputs)
    return linear + 2.0 * shape.layers * shape.heads * (shape.head_dim + (shape.value_dim or shape.head_dim)) * pairs


def count_forward_flops(shape: ModelShape, requests: Sequence[PromptLengths], head: bool = True, observed: int = 0) -> float:
    """Operations to compute completions, with each prompt computed once for all its completions; the tokens of them that are `observed`
    do not go through the head."""
    outputs = sum(n for _, lengths in requests for n in lengths) - observed
    return count_shared_prompt_flops(shape, [(p, [n - 1 for n in lengths if n]) for p, lengths in requests], outputs * head)


def count_nominal_flops(shape: ModelShape, requests: Sequence[PromptLengths]) -> float:
    """Operations as publications count them: every token through every weight but the embedding, a shared prompt once."""
    return count_shared_prompt_flops(shape, requests, sum(p + sum(lengths) for p, lengths in requests))


def count_shared_prompt_flops(shape: ModelShape, requests: Sequence[PromptLengths], outputs: int) -> float:
    """Operations where all completions of a prompt share one computation of it."""
    inputs = [p + n for p, lengths in requests for n in lengths]
    repeated = [p for p, lengths in requests for _ in lengths[1:]]
    return count_flops(shape, inputs, outputs) - count_flops(shape, repeated, 0)


@dataclass(frozen=True)
class Roofline:
    """The least seconds of one process for the samples of a step. `requests`: the lengths of its prompts and completions."""

    job: Job
    machine: DeviceLimits
    sends_adapter: bool = False  # to the rollout engine, instead of all weights
    offloads: bool = False  # the training state leaves the device for a rollout

    def rollout(self, rounds: Sequence[Sequence[PromptLengths]]) -> float:
        """Sampling in rounds; a round starts when the one before has ended.

        A round has as many steps as its longest completion has tokens. Each step reads all weights but the embedding, of experts as many as
        its tokens can choose; the step after token t of a completion reads the keys and values of P + t tokens. A prompt is computed once
        for all its completions.
        """
        return sum(
            max(self._count_bytes(requests) / self.machine.bandwidth, self._count_operations(requests) / self.machine.operations)
            for requests in rounds
        )

    def _count_bytes(self, requests: Sequence[PromptLengths]) -> float:
        shape, job = self.job.shape, self.job
        rows = sum(n > 0 for _, lengths in requests for n in lengths)
        weights = shape.count_linear(rows * shape.experts_per_token) + shape.hidden * shape.vocab
        steps = max((n for _, lengths in requests for n in lengths), default=0)
        keys = sum(max(n - 1, 0) * p + n * (n - 1) / 2 for p, lengths in requests for n in lengths)  # 1 + .. + (L - 1) = L (L - 1) / 2
        return (steps * weights * job.width + keys * shape.cache(job.width)) / job.tensor_parallel

    def _count_operations(self, requests: Sequence[PromptLengths]) -> float:
        return count_forward_flops(self.job.shape, requests) / self.job.tensor_parallel

    def observe(self, requests: Sequence[PromptLengths], models: int, values: bool, observed: int = 0) -> float:
        """Log-probs of so many models of the policy's shape and of a teacher, and values. observed: tokens that an environment wrote."""
        shape, teacher = self.job.shape, self.job.teacher
        taught = count_forward_flops(teacher, requests, observed=observed) if teacher else 0.0
        return (
            taught
            + models * count_forward_flops(shape, requests, observed=observed)
            + values * count_forward_flops(shape, requests, head=False)
        ) / self.machine.operations

    def update(self, requests: Sequence[PromptLengths], policy: bool = True, critic: bool = False, observed: int = 0) -> float:
        """A forward pass, and a backward pass for inputs and for weights; base weights under adapters have no gradient."""
        shape, passes = self.job.shape, 3 if self.job.rank is None else 2
        learned = policy * passes * count_forward_flops(shape, requests, observed=observed) + critic * 3 * count_forward_flops(
            shape, requests, head=False
        )
        return learned / self.machine.operations

    def compute_mfu(self, requests: Sequence[PromptLengths], seconds: float) -> float:
        """Model FLOP utilisation of an update (Chowdhery et al. 2022, "PaLM", appendix B): recomputed activations do not count."""
        passes = 3 if self.job.rank is None else 2
        return passes * count_nominal_flops(self.job.shape, requests) / (seconds * self.machine.operations)

    def sync(self, offloaded: bool, sent: bool) -> float:
        """The weights that are sent are read and written once; the training state that is offloaded goes over the bus."""
        job = self.job
        weights = job.trained if self.sends_adapter else job.shape.parameters / job.tensor_parallel
        away = job.zero.parked if offloaded and self.offloads else 0.0
        return sent * 2 * weights * job.width / self.machine.bandwidth + away / self.machine.bus


def compute_ratios(least: Mapping[str, float], times: Mapping[str, float]) -> dict[str, float]:
    """floor/<phase>: its seconds, time/<phase> in `times`, over the least seconds; phases without work are left out."""
    return {f"floor/{phase}": times[f"time/{phase}"] / seconds for phase, seconds in least.items() if seconds and f"time/{phase}" in times}
