"""How far a phase is from its floor: the least seconds that the step's own samples take on this machine, whoever computes them.

A floor is bytes over bandwidth or operations over peak, whichever is more. Letters: a sample of P prompt and L completion tokens; its
last token is never read, so P + L - 1 go through the layers, and L outputs go through the head. b bytes of a weight.

Left out, so that a floor stays one: rewards, padding, recomputed activations, the optimizer's own work, what ranks tell each other.
Bringing the training state back has none either: its copies go on while later phases run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlkit.profiling.memory_estimate import Job, ModelShape, estimate_optimizer_state

PromptLengths = tuple[int, Sequence[int]]  # P of a prompt, and L of each of its completions


@dataclass(frozen=True)
class DeviceLimits:
    """The most that one device does in a second."""

    operations: float  # of matrix products in the weights' type; an addition and a multiplication are two
    bandwidth: float  # bytes from and to its memory
    bus: float  # bytes one way between it and the host


GEN4, GEN5 = 31.5e9, 63.0e9  # PCIe, 16 lanes, after its 128b/130b encoding
KNOWN_GPUS = {  # bfloat16, dense, by the name that CUDA says; NVIDIA's data sheets of H200, H100, A100, L40S, the Ada white paper
    "NVIDIA H200": DeviceLimits(989e12, 4.8e12, GEN5),
    "NVIDIA H100 80GB HBM3": DeviceLimits(989e12, 3.35e12, GEN5),
    "NVIDIA H100 PCIe": DeviceLimits(756e12, 2.0e12, GEN5),
    "NVIDIA A100-SXM4-80GB": DeviceLimits(312e12, 2.039e12, GEN4),
    "NVIDIA A100 80GB PCIe": DeviceLimits(312e12, 1.935e12, GEN4),
    "NVIDIA A100-SXM4-40GB": DeviceLimits(312e12, 1.555e12, GEN4),
    "NVIDIA L40S": DeviceLimits(362e12, 0.864e12, GEN4),
    "NVIDIA GeForce RTX 4090": DeviceLimits(165.2e12, 1.008e12, GEN4),
}
MATRIX_SIDE = {"cpu": 512, "cuda": 8192}  # of the matrices that are multiplied to measure a machine
READ_BYTES = {"cpu": 2**25, "cuda": 2**30}  # bytes that are read
TRIES = 8


def find_device_limits(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """A known GPU from its data sheet; any other device, or a type that the sheet is not of, measured in about 0.1 s."""
    if device.type == "cuda" and dtype == torch.bfloat16 and (known := KNOWN_GPUS.get(torch.cuda.get_device_name(device))):
        return known
    return measure_device(device, dtype)


def measure_device(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """The best of a few tries. With the bus of a fast GPU: what a slower one needs beyond it counts as time that could be won."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    square = torch.ones(MATRIX_SIDE[kind], MATRIX_SIDE[kind], device=device, dtype=dtype)
    vector = torch.ones(READ_BYTES[kind] // 4, device=device)
    products, reads = measure_shortest(lambda: square @ square, device), measure_shortest(vector.sum, device)
    return DeviceLimits(2 * MATRIX_SIDE[kind] ** 3 / products, READ_BYTES[kind] / reads, GEN5)


def measure_shortest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of TRIES, after one that warms up."""
    seconds = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def count_flops(shape: ModelShape, read: Sequence[int], said: int) -> float:
    """Of a forward pass over samples of so many tokens, of which `said` outputs go through the head.

    2 a weight and token; attention 4 a layer, a number of a query, and a pair of tokens of which the second sees the first.
    """
    layer = sum(into * out for into, out in shape.linears)
    pairs = sum(n * (n + 1) // 2 for n in read)
    computed = 2.0 * (shape.layers * layer * sum(read) + shape.hidden * shape.vocab * said)
    return computed + 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def count_forward_flops(shape: ModelShape, asked: Sequence[PromptLengths], head: bool = True) -> float:
    """Operations that completions need, a prompt computed once for all its own."""
    said = sum(n for _, lengths in asked for n in lengths)
    return count_shared_prompt_flops(shape, [(p, [n - 1 for n in lengths if n]) for p, lengths in asked], said * head)


def count_nominal_flops(shape: ModelShape, asked: Sequence[PromptLengths]) -> float:
    """Operations of samples as publications count them, every token through every weight but the embedding; of a shared prompt once."""
    return count_shared_prompt_flops(shape, asked, sum(p + sum(lengths) for p, lengths in asked))


def count_shared_prompt_flops(shape: ModelShape, asked: Sequence[PromptLengths], said: int) -> float:
    """Operations where all completions of a prompt look back on one computation of it."""
    every = [p + n for p, lengths in asked for n in lengths]
    again = [p for p, lengths in asked for _ in lengths[1:]]
    return count_flops(shape, every, said) - count_flops(shape, again, 0)


@dataclass(frozen=True)
class Roofline:
    """Of one process, seconds, for the completions that it works on."""

    job: Job
    machine: DeviceLimits
    sends_adapter: bool = False  # to the rollout engine, in place of all weights
    swaps: bool = False  # training state leaves the device for a rollout

    def rollout(self, rounds: Sequence[Sequence[PromptLengths]]) -> float:
        """Completions of prompts; each round is asked for at once and begins when the one before has ended.

        A round takes as many steps as its longest completion has tokens, and each reads all weights but the embedding; the step after
        token t of a completion reads the keys and values of P + t tokens. A prompt is computed once for all its completions.
        """
        return sum(max(self._bytes(asked) / self.machine.bandwidth, self._operations(asked) / self.machine.operations) for asked in rounds)

    def _bytes(self, asked: Sequence[PromptLengths]) -> float:
        shape, job = self.job.shape, self.job
        read = shape.layers * sum(into * out for into, out in shape.linears) + shape.hidden * shape.vocab
        steps = max((n for _, lengths in asked for n in lengths), default=0)
        looked_back = sum(max(n - 1, 0) * p + n * (n - 1) / 2 for p, lengths in asked for n in lengths)  # 1 + .. + (L - 1) = L (L - 1) / 2
        return (steps * read * job.width + looked_back * shape.cache(job.width)) / job.tensor_parallel

    def _operations(self, asked: Sequence[PromptLengths]) -> float:
        return count_forward_flops(self.job.shape, asked) / self.job.tensor_parallel

    def observe(self, asked: Sequence[PromptLengths], models: int, values: bool) -> float:
        """Log-probs by so many models, and values."""
        shape = self.job.shape
        return (
            models * count_forward_flops(shape, asked) + values * count_forward_flops(shape, asked, head=False)
        ) / self.machine.operations

    def update(self, asked: Sequence[PromptLengths], policy: bool = True, critic: bool = False) -> float:
        """Forward, and backward for inputs and for weights, each as much; of adapters' base weights no gradient is made."""
        shape, passes = self.job.shape, 3 if self.job.rank is None else 2
        learned = policy * passes * count_forward_flops(shape, asked) + critic * 3 * count_forward_flops(shape, asked, head=False)
        return learned / self.machine.operations

    def mfu(self, asked: Sequence[PromptLengths], seconds: float) -> float:
        """Model FLOP utilisation of an update (Chowdhery et al. 2022, "PaLM", appendix B): recomputed activations do not count."""
        passes = 3 if self.job.rank is None else 2
        return passes * count_nominal_flops(self.job.shape, asked) / (seconds * self.machine.operations)

    def sync(self, parked: bool, sent: bool) -> float:
        """What is sent is read once and written once; what is parked goes over the bus."""
        job = self.job
        weights = job.trained if self.sends_adapter else job.shape.parameters / job.tensor_parallel
        away = estimate_optimizer_state(job) if parked and self.swaps and not job.offload else 0.0
        return sent * 2 * weights * job.width / self.machine.bandwidth + away / self.machine.bus


def compute_ratios(least: Mapping[str, float], clock: Mapping[str, float]) -> dict[str, float]:
    """floor/<phase>: its seconds, time/<phase> of `clock`, over the least; phases that had nothing to do are left out."""
    return {f"floor/{phase}": clock[f"time/{phase}"] / seconds for phase, seconds in least.items() if seconds and f"time/{phase}" in clock}
