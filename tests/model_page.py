"""The families of models that are tried, and the page of what came out: rlkit/docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("packed", "vLLM", "hf", "LoRA", "export")
LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "original_max_position_embeddings": 32}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # row of the page -> model_type, what its configuration adds
    "Qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen3 with adapters on its tied head": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen2.5, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "Llama 3, scaled positions": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "Llama, dynamic NTK": ("llama", {"rope_parameters": DYNAMIC_ROPE}),
    "Llama, YaRN": ("llama", {"rope_parameters": YARN_ROPE}),
    "Mistral, window": ("mistral", {"sliding_window": 8}),
    "Ministral 3": ("ministral3", {}),
    "SmolLM3": ("smollm3", {}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "Gemma 3n": (
        "gemma3n_text",
        {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "intermediate_size": [96] * 4,
            "vocab_size_per_layer_input": 259,
            "hidden_size_per_layer_input": 32,
            "laurel_rank": 16,
        },
    ),
    "Gemma 4": (
        "gemma4_text",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "vocab_size_per_layer_input": 259,
            "hidden_size_per_layer_input": 32,
            "per_layer_config": {"1": {"head_dim": 64}},
            "num_experts": None,
            "moe_intermediate_size": None,
        },
    ),
    "Phi-2": ("phi", {}),
    "Phi-3 and Phi-4, longrope": ("phi3", {"rope_parameters": LONG_ROPE}),
    "Granite 3": ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3}),
    "Command R": ("cohere", {"logit_scale": 0.25}),
    "Command R7B": ("cohere2", {"logit_scale": 0.25, "sliding_window": 8}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {"sliding_window": 8}),
    "GLM-4": ("glm4", {}),
    "Seed-OSS, dropout": ("seed_oss", {"residual_dropout": 0.3, "attention_dropout": 0.3}),
    "Starcoder2, dropout": ("starcoder2", {"residual_dropout": 0.3, "embedding_dropout": 0.3, "sliding_window": 8}),
    "OPT, dropout of layers": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.3, "layerdrop": 0.5}),
    "GPT-2": ("gpt2", {"n_embd": 64, "n_head": 2, "n_layer": 2}),
    "GPT-NeoX": ("gpt_neox", {}),
    "EXAONE 4": ("exaone4", {}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "Helium": ("helium", {}),
    "HunYuan": ("hunyuan_v1_dense", {}),
    "Arcee": ("arcee", {}),
    "Apertus": ("apertus", {}),
    "Nemotron": ("nemotron", {}),
    "Qwen3 MoE": ("qwen3_moe", {}),
    "Mixtral, router noise": ("mixtral", {"router_jitter_noise": 0.3}),
    "Phi-3.5 MoE, router noise": ("phimoe", {"router_jitter_noise": 0.3}),
    "OLMoE": ("olmoe", {}),
    "Granite MoE": ("granitemoe", {"logits_scaling": 8.0}),
    "GLM-4.5": ("glm4_moe", {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "gpt-oss, sinks": ("gpt_oss", {"sliding_window": 8}),
    "StableLM": ("stablelm", {}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Falcon": ("falcon", {}),
    "BLOOM": ("bloom", {}),
    "Llama 4": ("llama4_text", {"intermediate_size_mlp": 96}),
    "Qwen3-Next": ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}),
    "Mamba": ("mamba", {}),
    "Doge": ("doge", {}),
}

ADAPTED = {"Qwen3 with adapters on its tied head": ("lm_head",)}  # the names of layers with adapters, where they are not all linear ones

HEADER = """# Models

Written by `python tests/programs/families.py rlkit/docs/models.md` from what it ran: each family with tiny random weights, in float32, on
a CPU, with the versions of transformers and vLLM that rlkit pins. Other families of transformers are checked in the same way when a run
starts; the table is what was tried, not what is allowed.

## What is checked when a run starts

A *certificate*: a random model of the same configuration, with two narrow layers and with windows and other thresholds of 8 tokens, is run
by transformers on samples of 5 and 40 tokens, each alone, and by rlkit, packed into one row: alone, beside another sample, and with a
shared prompt. Log-probs and gradients agree to 1e-5 in float32 (a gradient that float32 itself rounds more, to that rounding), or the
model is refused with what differed. On a GPU the kernels for bfloat16 are run too: their mean error against float32 is at most three times
that of transformers in bfloat16, or 0.01 nats. The certificate is kept in the cache folder (`RLKIT_CACHE`), by configuration, by the
versions of torch and transformers, and by rlkit's own code; without one it takes less than 3 CPU seconds.

Then, with the model's own weights, two short samples are compared before the first step: at most 1e-4 nats apart in the mean in float32,
0.3 in bfloat16, in which two kinds of attention can be 0.1 apart. Each step of an online run compares sampler and trainer besides
(`engine.mismatch_limit`).

What is handled so that such models are trained exactly: dropout by function calls, dropped layers and router noise are off (a model is in
evaluation mode, and only its layers that recompute are not); longrope and dynamic NTK choose their frequencies once, by
`max_prompt_tokens + max_completion_tokens`, in trainer and sampler, as vLLM does; the factors of Cohere and Granite after the head go into
the temperature; soft caps of logits and of attention, and attention sinks, are computed. Soft caps of attention and sinks have no fast
kernel here: the scores of each sample are in memory, 4 bytes for each head and each pair of its tokens.

## Families

- *packed*: the certificate, and the two samples with the model's own weights
- *vLLM*, *hf*: after three large updates the log-probs of the sampler are those of the trainer to 1e-4 nats; with hf also a reference,
  loaded after the updates, is what the policy was before them
- *LoRA*: the same with adapters on all linear layers, sampled by hf
- *export*: the exported folder, loaded by transformers, is the trained model

"""

FOOTER = """
## Mixtures of experts

Experts are trained like all other weights: shared out by ZeRO 3, gathered layer by layer. Expert-parallel training, in which each rank
keeps some experts and tokens travel to them, is not offered. What that means, by the sizes of Qwen3-30B-A3B (48 layers of 128 experts of
3 x 2,048 x 768 weights, 8 of them for each token): the experts are 29.0 of its 30.5 billion weights. Training all of them takes 16 bytes a
weight, 488 GB over all ranks. In each pass over a micro-batch each rank receives all experts, 58 GB in bfloat16, once forward, and twice
more for the recomputed layers and the backward pass: 174 GB, which is 3.5 s at 50 GB/s. The arithmetic of 16,384 tokens with 3.3 billion
active weights, 4 x 2 floating-point operations each, takes 1.1 s at 400 TFLOP/s. So micro-batches of fewer than about 50,000 tokens a rank
wait for weights. These are calculated, not measured.
"""


def write_page(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Families in the order of FAMILIES."""
    names = [name for name in FAMILIES if name in found]
    head = ["| family | `model_type` | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    rows = [render_row(name, found[name]) for name in names]
    reasons = [line for name in names for line in render_reasons(name, found[name])]
    path.write_text(HEADER + "\n".join([*head, *rows, "", "What is printed of refused models:", "", *reasons]) + "\n" + FOOTER)


def render_row(name: str, found: Mapping[str, Any]) -> str:
    """What was not tried, since the model is refused, is left empty."""
    verdicts = [str(found.get(column, "")).partition(":")[0] for column in COLUMNS]
    return f"| {name} | {FAMILIES[name][0]} | " + " | ".join(verdicts) + " |"


def render_reasons(name: str, found: Mapping[str, Any]) -> list[str]:
    """A line for each verdict with a reason, without the folder and the figures of this run."""
    reasons = {column: str(found[column]).partition(": ")[2] for column in COLUMNS if ": " in str(found.get(column, ""))}
    clean = {column: re.sub(r"differ by \S+", "differ", re.sub(r"/\S+", "FOLDER", reason)) for column, reason in reasons.items()}
    return [f"- {name}, {column}: {reason}" for column, reason in clean.items()]
