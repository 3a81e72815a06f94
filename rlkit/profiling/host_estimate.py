"""Estimates the memory of a process without a GPU, libraries included, as the system shows it at the peak of each phase.

What differs from a GPU (memory_estimate.py): nothing leaves the memory, so policy, optimizer state and rollout engine are always there.
DeepSpeed's bucket takes memory only as gradients fill it, while activations are freed. torch's attention keeps its result twice, and a
mask for each completion after the first of a prompt. A process of more than LARGE_PROCESS bytes gives large freed blocks back at once
(`map_large_blocks` in rlkit/runtime/library_settings.py); with the C library's own settings up to two thirds of the activations would be
held again as holes in the heap, in some runs and not in others.
"""

from __future__ import annotations

from rlkit.profiling.memory_estimate import (
    GIB,
    LOGIT_BLOCK,
    LOGIT_COPIES,
    Job,
    estimate_activations,
    estimate_other_models,
    estimate_weights,
    estimate_wide_head,
)

LIBRARIES = {  # by rollout engine, with a tokenizer of 50,000 tokens; measured with a model of next to no weights
    "vllm": 0.78 * GIB,
    "hf": 0.58 * GIB,
    "none": 0.58 * GIB,
}
LARGE_PROCESS = 4 * GIB  # from which on what the heap wastes may be GiBs
KV_CACHE = 1 * GIB  # of vLLM (VLLM_CPU_KVCACHE_SPACE), which is filled from its beginning
BATCH_TOKENS = 8192  # of one forward pass of vLLM
ROWS = 256  # completions that are sampled at the same time
SAMPLING_COPIES = 4  # of the logits of a token: themselves, scaled, their log-softmax, and noise or probabilities
BLOCK_COPIES = 3  # of a block of logits, where not all are in memory at once: itself, its exponential, and a gradient or a mask


def estimate_host_peaks(job: Job) -> dict[str, float]:
    """Bytes of a process at the peak of each phase."""
    more, more_state = estimate_other_models(job)
    zero = job.zero
    state = (zero.offloaded if job.offload else zero.state) + zero.fixed
    stays = LIBRARIES[job.engine if job.samples else "none"] + estimate_weights(job) + more + more_state + state
    if not job.samples:
        return {"train": stays + estimate_update(job)}
    engine = job.shape.parameters * job.width / job.tensor_parallel + (KV_CACHE if job.engine == "vllm" else 0.0)
    return {"rollout": stays + engine + estimate_sampling(job), "train": stays + engine + estimate_update(job)}


def estimate_update(job: Job) -> float:
    """Beside what always stays: the sum of the gradients of earlier micro-batches, and the largest of a forward pass, of the gradients
    that one has left, of the optimizer's step, and of the copy that is exported at the end."""
    gradients = job.zero.gradients
    forward = estimate_host_activations(job) + estimate_host_logits(job) + (gradients if job.accumulates else 0.0)
    largest = max(forward, gradients + job.zero.incoming + job.zero.reduction, gradients + job.zero.step)
    return max(largest, float(job.shape.parameters * job.width))


def estimate_host_activations(job: Job) -> float:
    """With the second result of each layer's attention, and with masks [queries, keys] where completions share a prompt."""
    copy = job.shape.heads * (job.shape.value_dim or job.shape.head_dim) * job.width
    masks = job.longest * job.width * job.completions / job.tokens if job.keys > job.tokens else 0.0
    return estimate_activations(job, copy + masks)


def estimate_host_logits(job: Job) -> float:
    logits = job.completions * job.shape.vocab
    return 4.0 * (LOGIT_COPIES * logits if logits <= LOGIT_BLOCK else BLOCK_COPIES * LOGIT_BLOCK) + estimate_wide_head(job)


def estimate_sampling(job: Job) -> float:
    """Logits of the rows that are sampled together. Of vLLM the largest tensors of a forward pass: the residual and its norm, gate, up and
    their product; or, if that is more, the largest tensor that is sent to it, on its way and where it is kept until it is loaded. Of
    transformers' `generate` keys and values, one layer's twice, and the log-probs of all tokens, twice."""
    rows = min(ROWS, job.rows)
    logits = SAMPLING_COPIES * 4.0 * rows * job.shape.vocab + estimate_wide_head(job) / 2
    if job.engine == "hf":
        cache = rows * job.longest * job.shape.cache(job.width) * (1 + 1 / job.shape.layers)
        return logits + cache + 2 * 4.0 * rows * job.new_tokens * job.shape.vocab
    width = 2 * job.shape.hidden + 3 * max(job.shape.intermediate, job.shape.experts_per_token * job.shape.expert_intermediate)
    forward = min(BATCH_TOKENS, job.rows * job.longest) * width * job.width
    return max(logits + forward, 2.0 * job.shape.vocab * job.shape.hidden * job.width)
