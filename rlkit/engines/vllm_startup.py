"""What can go wrong while vLLM starts, in words, and what its versions do differently."""

from __future__ import annotations

import torch

FLOAT32_TEMPERATURE = (0, 32)  # from this version on
MORE_MEMORY = "engine.memory=sleep_and_offload leaves it the whole GPU; engine.tensor_parallel=2 halves what each GPU holds of it"
ADVICE = {  # by a part of vLLM's message
    "Free memory on device": "another process has memory of this GPU (nvidia-smi lists them): end it, "
    "or set engine.vllm.gpu_memory_utilization to less than what is free",
    "Error in memory profiling": "another process freed memory of this GPU meanwhile (nvidia-smi lists them): end it, and start again",
    "No available memory for the cache blocks": f"its share of the memory holds weights and activations alone: {MORE_MEMORY}; "
    "or raise engine.vllm.gpu_memory_utilization",
    "KV cache is needed": f"its share of the memory does not hold the keys and values of one sample: {MORE_MEMORY}; "
    "or lower max_prompt_tokens or max_completion_tokens, or raise engine.vllm.gpu_memory_utilization",
    "out of memory": f"its share of the memory does not hold weights and activations: {MORE_MEMORY}; "
    "or set engine.vllm.gpu_memory_utilization lower where other processes use this GPU",
}


def explain_startup_error(error: Exception, path: str) -> str:
    """What to do about an error that vllm.LLM raised."""
    reason = " ".join(str(error).split())
    if isinstance(error, TypeError):
        return f"engine.vllm holds a setting that vLLM does not know: {error}"
    advice = next((advice for part, advice in ADVICE.items() if part in reason), None)
    if advice:
        return f"vLLM cannot start: {advice} (vLLM: {reason[:300]})"
    return f"vLLM cannot serve model.path {path} with these settings: {reason[:300]}; set engine.rollout=hf"


def explain_rounding(version: str, dtype: torch.dtype, temperature: float) -> str | None:
    """What vLLM's log-probs on a GPU are off by; None where by rounding alone.

    Before 0.32 it stores logits divided by the temperature in the dtype of the model.
    """
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if dtype != torch.bfloat16 or temperature in (0.0, 1.0) or number >= FLOAT32_TEMPERATURE:
        return None
    return (
        f"vLLM {version} rounds logits to bfloat16 after dividing them by sampling.temperature={temperature:g}: its log-probs are off by "
        "0.02 to 0.04 nats in the mean, and importance ratios with them; vLLM 0.32 with torch 2.13 does not, nor does temperature 1"
    )
