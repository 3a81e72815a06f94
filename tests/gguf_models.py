"""Small random models, written to GGUF as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.builtin.model import CHAT_TEMPLATE, build_tokenizer

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is not installed (the extra gguf): no file is written in this format")

LENGTH, HEADS, KV_HEADS, HEAD, EPS, THETA = 128, 4, 2, 32, 1e-5, 5000.0
VOCABULARY = 260  # the built-in tokenizer and what its file has no use for, a merge: "he"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]  # of keys and tensors, in place


def build_model(kind: str, tied: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"head_dim": HEAD} if kind != "qwen2" else {}
    config = AutoConfig.for_model(
        kind,
        **(SIZES | more | {"hidden_size": 128 if kind == "qwen2" else 64}),
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.5, 0.5)  # norms and biases too, which are all 1 and 0 at first
    return model


def rotate_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys of a llama in the order of llama.cpp: the two of a pair that RoPE rotates stand beside each other."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


NAMES = {"embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def list_tensors(model: Any) -> dict[str, np.ndarray]:
    tensors = {}
    for name, parameter in model.named_parameters():  # a tied head is none
        module, _, kind = name.removeprefix("model.").rpartition(".")
        array = parameter.detach().numpy()
        if module.startswith("layers."):
            _, layer, module = module.split(".", 2)
            if model.config.model_type == "llama" and module.endswith(("q_proj", "k_proj")):
                array = rotate_pairs(array, HEADS if module.endswith("q_proj") else KV_HEADS)
            tensors[f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"] = array
        else:
            tensors[f"{NAMES[module]}.{kind}"] = array
    return tensors


def write_gguf(model: Any, file: Path, change: Change = lambda keys, tensors: None) -> Path:
    config, tokenizer = model.config, build_tokenizer()
    keys: dict[str, Any] = {
        "context_length": LENGTH,
        "block_count": 2,
        "embedding_length": config.hidden_size,
        "feed_forward_length": 96,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": EPS,
        "rope.freq_base": THETA,
        "rope.dimension_count": HEAD,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    }
    keys |= {"attention.key_length": HEAD} if config.model_type == "qwen3" else {}
    tensors = list_tensors(model)
    change(keys, tensors)
    writer = gguf.GGUFWriter(file, config.model_type)
    for key, value in keys.items():
        kind = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        kind(key if key.startswith(("tokenizer.", "split.")) else f"{config.model_type}.{key}", value)
    writer.add_token_list([*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "he"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1])
    writer.add_array("tokenizer.ggml.merges", ["h e"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
