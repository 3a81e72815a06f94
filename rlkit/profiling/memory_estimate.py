"""Estimates the memory of a run, phase by phase, before anything is loaded: plain formulas, in bytes of one process.

Letters: P parameters, T trained parameters, b bytes of a weight, W processes, z ZeRO stage, n tokens of a micro-batch.

Counted: weights P b, over W with z = 3, but not less than one gathered bucket. Optimizer state, gradients, the buckets in which they are
reduced and the buffers of the optimizer's step: zero_estimate.py. In a backward pass the activations: of all layers
(`estimate_activations`), or of one layer and the inputs of all with checkpointing; and LOGIT_COPIES floats for each logit. A reference
or a teacher (weights) and a critic (as the policy, with all parameters trained). The rollout engine: P b over its processes, its KV cache,
and ENGINE_OVERHEAD. Of libraries a constant, CUDA_CONTEXT. What differs in a process without a GPU is in host_estimate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlkit.profiling.model_shape import ModelShape, count_weights
from rlkit.profiling.zero_estimate import ZeroMemory

GIB = 2**30
CUDA_CONTEXT = 1.5 * GIB  # CUDA, its kernels, and NCCL
ENGINE_OVERHEAD = 2.0 * GIB  # the rollout engine's own activations and CUDA graphs
USABLE_SHARE = 0.92  # of a GPU: the rest is lost to fragmentation
LOGIT_BLOCK = 2**25  # logits that are in memory at a time
LOGIT_COPIES = 4  # of each logit in float32: itself, its log-softmax, the exponential, and a gradient
FOUR_BIT_BYTES = (
    0.5 + 1 / 64 + 4 / 64 / 256
)  # bytes of a weight: a scale of 1 byte for 64 weights, a scale of 4 bytes for 256 of those scales
GATHER_BUFFER = 1 * GIB  # of weights in a sync, twice: gathered and copied
MIN_COMPLETIONS = 32  # completions that should be sampled at the same time


@dataclass(frozen=True)
class Job:
    """The work of each process of a run."""

    shape: ModelShape
    width: int  # bytes of a weight
    rank: int | None  # of LoRA adapters; None: all weights are trained
    world: int
    stage: int
    tensor_parallel: int
    tokens: int  # of a micro-batch
    completions: int  # those of its tokens that go through the head
    keys: int  # that its tokens attend to; the keys of a shared prompt count once for each sample: not less than tokens
    longest: int  # tokens of the longest sample
    rows: int  # completions that one rollout engine samples in a step
    reference: bool
    critic: bool
    offload: bool  # optimizer state on the host
    checkpointing: int  # every n-th layer is recomputed; 0: none
    four_bits: bool = False  # the linear layers under adapters have 4 bits
    samples: bool = True  # there is a rollout engine beside the trainer
    accumulates: bool = True  # an update has several micro-batches
    engine: str = "vllm"  # of rollouts
    new_tokens: int = 0  # of the longest completion
    whole: int = 0  # weights that are trained beside adapters
    float32_gradients: bool = True  # micro-batches add up in float32
    float32_head: bool = False  # logits are computed in float32, whatever the weights have
    teacher: ModelShape | None = None  # of a second model that only reads
    targets: tuple[str, ...] | None = None  # names of the layers that get adapters; None: all linear ones

    @property
    def adapters(self) -> int:
        """Weights of the adapters."""
        return 0 if self.rank is None else self.shape.adapters(self.rank, self.targets)

    @property
    def trained(self) -> int:
        return self.shape.parameters if self.rank is None else self.adapters + self.whole

    @property
    def parameters(self) -> int:
        return self.shape.parameters + self.adapters

    @property
    def zero(self) -> ZeroMemory:
        """What the policy takes under ZeRO."""
        ends = self.shape.vocab * self.shape.hidden
        largest = self.shape.largest_tensor if self.rank is None else max(min(self.whole, ends), self.shape.largest_adapter(self.rank))
        return ZeroMemory(self.trained, largest, self.width, self.world, self.stage, self.float32_gradients, self.offload)


def estimate_weights(job: Job) -> float:
    """P b; with z = 3 a part of it, and the gathered weights of one layer."""
    linears = count_weights(job.shape.linears) if job.four_bits else 0
    full = job.parameters * job.width - linears * (job.width - FOUR_BIT_BYTES)
    if job.stage < 3:
        return full
    return min(full, full / job.world + 2 * job.shape.largest_layer * job.width)


def estimate_backward(job: Job) -> float:
    """Activations, logits, the gradient of the head, which is computed while all activations are there, and what reduces gradients."""
    return estimate_activations(job) + estimate_logits(job) + job.zero.incoming + job.zero.reduction


def estimate_training(job: Job) -> float:
    """Gradients and the larger of a backward pass and an optimizer step."""
    return job.zero.gradients + max(estimate_backward(job), job.zero.step)


def estimate_layer_activations(shape: ModelShape, width: int, rank: int | None = None, sparse: bool = False, maps: int = 7) -> int:
    """Bytes that a layer keeps of each token for its backward pass; letters b = width, h, i, and q, k, v, o of all heads.

    Two norms: the input in float32, the output, and the normalised input where the norm's weights are trained, h (4 + 2 b) each; of
    compressed queries, keys and values as much of each; with norms of queries and keys also (q + k)(4 + b). Queries, keys, values, the
    output of attention and its log-sums, (q + k + v + o) b and 4 for each head. Gate, up, the activated gate and its product with up,
    4 i b. Adapters: the output of each A, rank b for each of the `maps` that have one. In a sparse layer instead of the MLP: of each expert
    of a token its own 4 i b, its input and output, 2 h b, and four numbers of 8 bytes; of the router E (4 + b); and the shared experts as
    an MLP.
    """
    heads = shape.heads * shape.head_dim
    q, k, v, o = heads, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim, heads
    if shape.key_rank:
        k, v, o = heads, shape.heads * shape.value_dim, shape.heads * shape.value_dim
    normalised = width if rank is None else 0
    norms = (2 * shape.hidden + shape.query_rank + shape.key_rank) * (4 + width + normalised) + (q + k) * (4 + normalised) * shape.qk_norm
    mlp = 4 * (shape.shared_intermediate if sparse else shape.intermediate) * width
    if sparse:
        mlp += shape.experts_per_token * ((4 * shape.expert_intermediate + 2 * shape.hidden) * width + 32) + shape.experts * (4 + width)
    return norms + (q + k + v + o + maps * (rank or 0)) * width + mlp + 4 * shape.heads


def estimate_activations(job: Job, more: float = 0.0) -> float:
    """Of all layers; of recomputed layers only the input, and one complete layer at a time. `more`: bytes of a token in each layer."""
    shape, layers = job.shape, job.shape.layers
    maps = 7 if job.targets is None else min(7, len(job.targets))
    dense, sparse = (estimate_layer_activations(shape, job.width, job.rank, kind, maps) + more for kind in (False, True))
    mean = dense + (sparse - dense) * shape.sparse_layers / layers
    largest = max(dense if shape.sparse_layers < layers else 0.0, sparse if shape.sparse_layers else 0.0)
    recomputed = -(-layers // job.checkpointing) if job.checkpointing else 0
    whole = (layers - recomputed) * mean + bool(recomputed) * largest
    inputs = recomputed * shape.hidden * job.width
    repeated = (job.keys - job.tokens) * 2 * shape.kv_heads * shape.head_dim * job.width  # keys and values of shared prompts
    return (layers - recomputed + bool(recomputed)) * repeated + job.tokens * (whole + inputs)


def estimate_logits(job: Job) -> float:
    return LOGIT_COPIES * 4.0 * min(job.completions * job.shape.vocab, LOGIT_BLOCK) + estimate_wide_head(job)


def estimate_wide_head(job: Job) -> float:
    """The head's weight and its gradient in float32, where it computes in that and the model does not."""
    return 8.0 * job.shape.vocab * job.shape.hidden if job.float32_head and job.width < 4 else 0.0


def estimate_other_models(job: Job) -> tuple[float, float]:
    """(weights, training state) of a reference, a teacher and a critic. A policy with adapters alone is its own reference."""
    frozen = job.shape.parameters * job.width if job.reference and (job.rank is None or job.whole) else 0.0
    frozen += job.teacher.parameters * job.width if job.teacher else 0.0
    critic = replace(job, rank=None, four_bits=False)
    if not job.critic:
        return frozen, 0.0
    own = critic.zero
    return frozen + estimate_weights(critic), (0.0 if job.offload else own.state) + own.gradients + own.fixed


def estimate_engine_weights(job: Job) -> float:
    return 0.0 if not job.samples else job.shape.parameters * job.width / job.tensor_parallel


def estimate_kv_cache(job: Job, rows: int) -> float:
    """Keys and values of so many samples of the maximal length."""
    return rows * job.longest * job.shape.cache(job.width) / job.tensor_parallel


def estimate_parts(job: Job) -> dict[str, float]:
    more, more_state = estimate_other_models(job)
    return {
        "weights": estimate_weights(job) + more,
        "training state": (0.0 if job.offload else job.zero.state) + job.zero.fixed + more_state,
        "update": estimate_training(job),
        "engine weights": estimate_engine_weights(job),
        "engine cache": estimate_kv_cache(job, min(job.rows, MIN_COMPLETIONS)),
    }


MODES = ("resident", "sleep", "sleep_and_offload")  # the first that fits is the fastest


def estimate_gpu_peaks(job: Job, mode: str) -> dict[str, float]:
    """Bytes of GPU memory at the peak of each phase, with the smallest KV cache. resident: everything stays; sleep: the engine leaves the
    GPU in training; sleep_and_offload: the training state also leaves it in a rollout."""
    p = estimate_parts(job)
    engine = p["engine weights"] + p["engine cache"] + ENGINE_OVERHEAD
    learning = p["weights"] + p["training state"] + p["update"]
    if not job.samples:
        return {"train": CUDA_CONTEXT + learning}
    return {
        "sync": CUDA_CONTEXT
        + p["weights"]
        + (0.0 if mode == "sleep_and_offload" else p["training state"])
        + p["engine weights"]
        + 2 * GATHER_BUFFER,
        "rollout": CUDA_CONTEXT + p["weights"] + (0.0 if mode == "sleep_and_offload" else p["training state"]) + engine,
        "train": CUDA_CONTEXT + learning + (engine if mode == "resident" else 0.0),
    }


def estimate_host_memory(job: Job, mode: str) -> float:
    """Bytes of host memory of one process: the weights while they load (with ZeRO 3 its part of them, except in 4 bits), or the training
    state that is there."""
    learners = [job.zero, *([replace(job, rank=None).zero] if job.critic else [])]
    parked = mode == "sleep_and_offload"
    away = sum(zero.offloaded if job.offload else zero.parked if parked else 0.0 for zero in learners)
    in_parts = job.stage == 3 and not job.four_bits
    return max(job.shape.parameters * job.width / (job.world if in_parts else 1), away) + 4 * GIB


def compute_rollout_budget(job: Job, mode: str, gpu: float) -> float:
    """Bytes of a GPU that the rollout engine may use for weights, KV cache and activations."""
    p = estimate_parts(job)
    stays = CUDA_CONTEXT + p["weights"] + (0.0 if mode == "sleep_and_offload" else p["training state"]) + GATHER_BUFFER
    return USABLE_SHARE * gpu - stays - (p["update"] if mode == "resident" else 0.0)


@dataclass(frozen=True)
class MemoryPlan:
    """A memory mode (one of MODES) and the bytes that it takes."""

    mode: str
    peaks: dict[str, float]  # of a GPU, by phase
    host: float  # of a process
    fits: bool
    change: str | None  # the first change that makes it fit, where it does not

    @property
    def largest_phase(self) -> str:
        return max(self.peaks, key=lambda phase: self.peaks[phase])


def plan_memory(job: Job, gpu: float, mode: str = "auto") -> MemoryPlan:
    """The fastest mode that fits a GPU of `gpu` bytes; if none fits, the last one, with the first change that makes it fit."""
    modes = MODES if mode == "auto" else (mode,)
    for chosen in modes:
        if fits_gpu(job, chosen, gpu):
            return MemoryPlan(chosen, estimate_gpu_peaks(job, chosen), estimate_host_memory(job, chosen), True, None)
    last = modes[-1]
    change = next((settings for settings, other, how in suggest_changes(job, last) if fits_gpu(other, how, gpu)), None)
    return MemoryPlan(last, estimate_gpu_peaks(job, last), estimate_host_memory(job, last), False, change)


def fits_gpu(job: Job, mode: str, gpu: float) -> bool:
    """Whether every phase fits a GPU of `gpu` bytes."""
    return max(estimate_gpu_peaks(job, mode).values()) <= USABLE_SHARE * gpu


def suggest_changes(job: Job, mode: str, host: bool = False) -> Iterator[tuple[str, Job, str]]:
    """Changes that may make it fit, the mildest first: (settings, job, mode). Each one includes those before it, but for the size of a
    micro-batch, which is halved. host: of a run without a GPU, where nothing can leave the memory."""
    settings: list[str] = []

    def add(setting: str) -> str:
        settings.append(setting)
        return " ".join(settings)

    if mode != "sleep_and_offload" and not host:
        mode = "sleep_and_offload"
        yield add("engine.memory=sleep_and_offload"), job, mode
    before = list(settings)
    while job.tokens > job.longest:
        job = shrink_micro_batch(job, max(job.tokens // 2, job.longest))
        settings[:] = before
        yield add(f"tokens_per_micro_batch={job.tokens}"), job, mode
    if job.stage < 3 and job.world > 1:
        job = replace(job, stage=3)
        yield add("engine.zero_stage=3"), job, mode
    if job.checkpointing != 1:
        job = replace(job, checkpointing=1)
        yield add("engine.gradient_checkpointing=1"), job, mode
    if not (job.offload or host):
        job = replace(job, offload=True)
        yield add("engine.offload=optimizer"), job, mode
    if job.zero.is_widened and job.stage != 2:  # ZeRO 2 would hold the gradients of a micro-batch beside their sum
        job = replace(job, float32_gradients=False)
        yield add("engine.float32_gradients=false"), job, mode
    if job.rank is None:
        job = replace(job, rank=32)
        yield add("model.lora.rank=32"), job, mode
    for gpus in () if host else (2 * job.world, 4 * job.world, 8 * job.world):
        yield f"{' '.join(settings)} and {gpus} GPUs", replace(job, world=gpus, stage=3, tensor_parallel=min(8, gpus)), mode


def shrink_micro_batch(job: Job, tokens: int) -> Job:
    """With micro-batches of so many tokens, of which as large a part goes through the head; one sample shares its prompt with no other."""
    keys = max(tokens, job.keys * tokens // job.tokens) if tokens > job.longest else tokens
    return replace(job, tokens=tokens, completions=min(tokens, -(-job.completions * tokens // job.tokens)), keys=keys, accumulates=True)
