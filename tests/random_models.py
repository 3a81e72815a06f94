"""Tiny models of any family with random weights and the built-in tokenizer, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {  # those that a family does not know are left out
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
}
EXPERTS = {  # under the names of several families; each token goes through 2 of 4
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {  # what they need beside that
    "phi": {"partial_rotary_factor": 0.5},
    "glm4_moe": {"head_dim": 32},
    "deepseek_v3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 2,
    },
}


def save_random_model(folder: Path, family: str, dtype: str = "float32", **more: Any) -> Path:
    """Saves a model of a `model_type` of transformers, with `more` in its configuration; returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlkit.builtin.model import build_tokenizer

    tokenizer = build_tokenizer()
    known = AutoConfig.for_model(family)
    wanted = {**SIZES, **(EXPERTS if any(hasattr(known, name) for name in EXPERTS) else {})}
    sizes = {name: value for name, value in wanted.items() if can_set(known, name)} | FAMILIES.get(family, {}) | more
    config = AutoConfig.for_model(
        family, **sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 3:  # experts, which some families leave as they were allocated
                torch.nn.init.normal_(parameter, std=0.02)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def can_set(config: Any, name: str) -> bool:
    """Whether a configuration has a setting of this name."""
    own = getattr(type(config), name, None)
    return name in config.to_dict() or (hasattr(config, name) and not (isinstance(own, property) and own.fset is None))
