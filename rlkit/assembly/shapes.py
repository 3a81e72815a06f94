"""The shape of a model from its config.json, checked against what its files hold; no library of models is loaded.

FAMILIES counts a family's weights exactly, as transformers builds it. Of any other family config.json is read as if it were a Llama's.
Where the files hold another number of weights, they are believed; of a known family only where they hold fewer, since they may hold more
than the model (layers that predict further tokens, an image encoder).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from rlkit.config.recipe import Recipe
from rlkit.config.sections import ShapeSection
from rlkit.engines.weight_files import FLOATS, StoredTensor, read_header
from rlkit.errors import UserError
from rlkit.profiling.model_shape import ModelShape

Config = Mapping[str, Any]
SHAPE_KEYS = {"num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SHARED_INTERMEDIATE = ("shared_expert_intermediate_size", "shared_intermediate_size")
PACKED = {"U8", "I8", "I32", "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
NEAR = 0.01  # by which the two counts may differ


def find_shape(recipe: Recipe) -> ModelShape | None:
    """From model.shape, the built-in model, or the config.json of a folder or of a model in the hub's cache; None where there is none, or
    one of a family that has other keys. Raises UserError where the file is damaged."""
    if recipe.model.path != "builtin" and recipe.model.shape is not None:
        return ModelShape(**recipe.model.shape.model_dump())
    return find_shape_of_path(recipe.model.path)


def find_shape_of_path(path: str) -> ModelShape | None:
    """As find_shape, of a model that no key describes."""
    if path == "builtin":
        return builtin_shape()
    folder = find_folder(path)
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
        shape = read_shape(config) if config.keys() >= SHAPE_KEYS else None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise UserError(f"{file} is not the configuration of a model: {error}; download the model again, or set model.path") from error
    return shape and correct_by_files(shape, config, folder)


def builtin_shape() -> ModelShape:
    from rlkit.builtin import model as builtin

    heads = builtin.HIDDEN // builtin.HEAD
    sides = (builtin.HIDDEN, builtin.INTERMEDIATE, builtin.LAYERS, heads, heads, builtin.HEAD, builtin.VOCABULARY)
    return ModelShape(*sides, tied=True, qk_norm=True)


def find_folder(path: str) -> Path:
    """The folder of a model: `path`, or the snapshot of a model of this name in the hub's cache, if there is one."""
    folder = Path(path).expanduser()
    if folder.is_dir() or path.count("/") != 1 or path.startswith(("/", ".", "~")):
        return folder
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, "config.json")
    except ValueError:  # no name of a model
        return folder
    return Path(found).parent if isinstance(found, str) else folder


def read_shape(config: Config) -> ModelShape:
    """The shape in a Hugging Face configuration. Raises ValueError where a number is none."""
    heads, kind, dense = config["num_attention_heads"], str(config.get("model_type")), config["intermediate_size"]
    base = {
        "hidden": config["hidden_size"],
        "intermediate": max(dense) if isinstance(dense, list) and dense else dense,  # one for each layer of Gemma 3n
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings", kind in TIED)),
        "qkv_bias": bool(config.get("attention_bias", False)),
        **read_experts(config),
        **read_latent_attention(config),
    }
    shape = ModelShape(**ShapeSection(**base).model_dump())
    biases = shape.hidden * bool(shape.qkv_bias and not shape.key_rank)  # of o
    biases += (2 * shape.intermediate + shape.hidden) * bool(config.get("mlp_bias", False))
    return FAMILIES.get(kind, plain)(replace(shape, others=shape.layers * biases), config)


def read_experts(config: Config) -> dict[str, int]:
    """The numbers of a mixture of experts; empty where the configuration has none."""

    def first(keys: tuple[str, ...]) -> int:
        return next((config[key] for key in keys if isinstance(config.get(key), int)), 0)

    experts = first(EXPERTS)
    if experts <= 1 and not first(EXPERTS_PER_TOKEN):
        return {}
    each = config.get("moe_intermediate_size") or config["intermediate_size"]
    layers = range(config["num_hidden_layers"])
    return {
        "experts": experts,
        "experts_per_token": first(EXPERTS_PER_TOKEN) or 1,
        "expert_intermediate": each,
        "shared_intermediate": first(SHARED_INTERMEDIATE) or first(SHARED_EXPERTS) * each,
        "dense_layers": sum(not has_experts(config, layer) for layer in layers),
    }


def has_experts(config: Config, layer: int) -> bool:
    """Whether a layer, counted from 0, has experts: by a number of dense layers at the beginning, a list of them, or every n-th."""
    if layer < (config.get("first_k_dense_replace") or 0) or layer in (config.get("mlp_only_layers") or ()):
        return False
    if "moe_layer_interval" in config:
        last = config.get("moe_layer_end_index", -1)
        inside = config.get("moe_layer_start_index", 0) <= layer <= (last if last >= 0 else config["num_hidden_layers"])
        return bool(inside) and (layer + 1) % int(config["moe_layer_interval"]) == 0
    return (layer + 1) % int(config.get("decoder_sparse_step") or 1) == 0


def read_latent_attention(config: Config) -> dict[str, int]:
    if not config.get("kv_lora_rank"):
        return {}
    return {
        "query_rank": config.get("q_lora_rank") or 0,
        "key_rank": config["kv_lora_rank"],
        "rope_dim": config["qk_rope_head_dim"],
        "head_dim": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "value_dim": config["v_head_dim"],
    }


# -- families ----------------------------------------------------------------------------------------------------------------------


def plain(shape: ModelShape, config: Config) -> ModelShape:
    return shape


def add(shape: ModelShape, weights: int, **changes: Any) -> ModelShape:
    return replace(shape, others=shape.others + weights, **changes)


def with_qk_norm(shape: ModelShape, config: Config) -> ModelShape:
    return replace(shape, qk_norm=True)


def with_wide_qk_norm(shape: ModelShape, config: Config) -> ModelShape:
    """One norm over the queries of all heads, one over the keys."""
    return add(shape, shape.layers * (shape.heads + shape.kv_heads) * shape.head_dim)


def with_four_norms(shape: ModelShape, config: Config) -> ModelShape:
    return add(shape, 2 * shape.layers * shape.hidden)


def without_output_bias(shape: ModelShape, config: Config) -> ModelShape:
    return replace(shape, others=0)


def qwen2(shape: ModelShape, config: Config) -> ModelShape:
    return replace(shape, qkv_bias=True, others=0)


def qwen2_moe(shape: ModelShape, config: Config) -> ModelShape:
    """A gate of one number beside its shared expert."""
    gates = shape.sparse_layers * shape.hidden
    return replace(shape, qkv_bias=bool(config.get("qkv_bias", True)), others=gates)


def glm4_moe(shape: ModelShape, config: Config) -> ModelShape:
    return replace(shape, qk_norm=bool(config.get("use_qk_norm", False)), others=0)


def gpt_oss(shape: ModelShape, config: Config) -> ModelShape:
    """Biases everywhere, and a sink for each head."""
    attention = shape.layers * (shape.hidden + shape.heads)
    experts = shape.sparse_layers * shape.experts * (1 + 2 * shape.expert_intermediate + shape.hidden)
    return replace(shape, qkv_bias=True, others=attention + experts)


def phimoe(shape: ModelShape, config: Config) -> ModelShape:
    """LayerNorm in the place of RMSNorm."""
    return add(shape, (2 * shape.layers + 1) * shape.hidden + shape.vocab * bool(config.get("lm_head_bias", False)))


def ernie4_5_moe(shape: ModelShape, config: Config) -> ModelShape:
    """A bias for each expert, which is not trained."""
    return add(shape, shape.sparse_layers * shape.experts)


def seed_oss(shape: ModelShape, config: Config) -> ModelShape:
    bias = bool(config.get("attention_bias", True))
    return replace(shape, qkv_bias=bias, others=shape.layers * shape.hidden * bool(config.get("attention_out_bias", False)))


def gemma3(shape: ModelShape, config: Config) -> ModelShape:
    return with_four_norms(with_qk_norm(shape, config), config)


TIED = {"gemma", "gemma2", "gemma3_text", "cohere", "cohere2"}  # where config.json does not say
FAMILIES: dict[str, Callable[[ModelShape, Config], ModelShape]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "granite", "granitemoe", "granitemoeshared", "phi3", "smollm3"), plain),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), plain),
    **dict.fromkeys(("qwen3", "qwen3_moe", "dots1", "exaone4", "hunyuan_v1_dense"), with_qk_norm),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe"), with_wide_qk_norm),
    "ernie4_5_moe": ernie4_5_moe,
    "gemma2": with_four_norms,
    "gemma3_text": gemma3,
    "glm": without_output_bias,
    "glm4_moe": glm4_moe,
    "gpt_oss": gpt_oss,
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "seed_oss": seed_oss,
}

# -- files -------------------------------------------------------------------------------------------------------------------------


def correct_by_files(shape: ModelShape, config: Config, folder: Path) -> ModelShape:
    """The shape, with the number of weights that the files hold where its numbers give another: fewer, or of an unknown family more."""
    stored = count_stored_weights(folder, config, shape.tied)
    if stored is None or abs(stored - shape.parameters) <= NEAR * stored:
        return shape
    if config.get("model_type") in FAMILIES and stored > shape.parameters:
        return shape
    return add(shape, stored - shape.parameters, counted=False)


def count_stored_weights(folder: Path, config: Config, tied: bool) -> int | None:
    """The number of weights in the safetensors of a folder, of which the headers alone are read; where files are missing, by the index.
    None where there is neither, and where weights are packed."""
    index = folder / "model.safetensors.index.json"
    try:
        if not index.is_file():
            return count_header(read_header(folder / "model.safetensors"), tied)
        content = json.loads(index.read_text())
        files = {folder / name for name in content["weight_map"].values()}
        if all(file.is_file() for file in files):
            return sum(count_header(read_header(file), tied) for file in files)
        total = content["metadata"]
        return int(total.get("total_parameters") or total["total_size"] // BYTES[str(config.get("dtype") or config.get("torch_dtype"))])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a damaged file is refused in words where it is loaded
        return None


def count_header(header: Mapping[str, StoredTensor], tied: bool) -> int:
    """Weights; a head that is the embedding does not count again. Raises ValueError where they are packed."""
    if any(tensor.dtype in PACKED for tensor in header.values()):
        raise ValueError("packed weights")
    return sum(prod(tensor.shape) for name, tensor in header.items() if tensor.dtype in FLOATS and not (tied and name == "lm_head.weight"))
