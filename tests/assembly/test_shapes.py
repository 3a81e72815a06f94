"""Numbers of weights: as transformers builds a model of each family, as published, and as files hold them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlkit.assembly import plan, shapes
from rlkit.config.sections import ShapeSection
from rlkit.errors import UserError
from rlkit.profiling.model_shape import ModelShape
from tests.profiling.test_memory_estimate import TINY, composed

SIDES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
ENDS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1}
GROUPS = {"n_group": 2, "topk_group": 1}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_shared_experts": 2, **ROUTED, **GROUPS}
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"q_lora_rank": None, **LATENT},
    "deepseek_v3": {"q_lora_rank": 12, **LATENT},
    "dots1": {**ROUTED, **GROUPS, "n_shared_experts": 1, "head_dim": 16},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 20,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
    "glm4_moe": {**ROUTED, **GROUPS, "n_shared_experts": 1, "use_qk_norm": True, "head_dim": 16, "attention_bias": True},
    "gpt_oss": {**FOUR, "head_dim": 8},
    "granitemoe": FOUR,
    "granitemoeshared": {**FOUR, "shared_intermediate_size": 24},
    "hunyuan_v1_dense": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mixtral": FOUR,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**FOUR, "attention_bias": True, "lm_head_bias": True},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 16, "decoder_sparse_step": 2},
}


def count_in_transformers(kind: str, settings: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Weights of a model that is built without memory, and its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters()), config.to_dict()


@pytest.mark.parametrize("kind", sorted(shapes.FAMILIES))
def test_a_known_family_has_as_many_weights_as_transformers_builds(kind: str) -> None:
    count, config = count_in_transformers(kind, {**SIDES, **ENDS, **MORE.get(kind, {})})
    assert shapes.read_shape(config).parameters == count


# of the config.json on the hub, the keys that the reader knows; billions of weights, and of those that a token goes through
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
}
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "tie_word_embeddings": False,
}
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [(QWEN3_30B, 30.53, 3.35), (MIXTRAL_8X7B, 46.70, 12.88), (DEEPSEEK_V3, 671.03, 37.55), (GPT_OSS_20B, 20.91, 4.19)],
    ids=["Qwen3-30B-A3B", "Mixtral-8x7B", "DeepSeek-V3", "gpt-oss-20b"],
)
def test_published_mixtures_have_their_published_sizes(config: dict[str, Any], billions: float, active: float) -> None:
    """Qwen3-30B-A3B: 30.5 B, 3.3 B active; Mixtral-8x7B: 46.7 and 12.9; DeepSeek-V3: 671 and 37; gpt-oss-20b: 20.9 and 3.6, its
    embedding left out."""
    shape = shapes.read_shape(config)
    assert (round(shape.parameters / 1e9, 2), round(shape.active_parameters / 1e9, 2)) == (billions, active)


def test_a_mixture_by_hand() -> None:
    """TINY with 2 layers, of which one has 4 experts of size 5, 2 for each token, and a shared one of size 6."""
    sparse = replace(TINY, experts=4, experts_per_token=2, expert_intermediate=5, shared_intermediate=6, dense_layers=1)
    # attention 72 a layer; the dense MLP 96; the router 4 x 4, an expert 3 x 4 x 5 = 60, the shared one 3 x 4 x 6 = 72
    assert sparse.count_linear() == 2 * 72 + 96 + (16 + 4 * 60 + 72)
    assert sparse.active_linear == 2 * 72 + 96 + (16 + 2 * 60 + 72)
    assert sparse.parameters - sparse.active_parameters == 2 * 60
    assert sparse.largest_layer == 72 + 16 + 240 + 72
    # rank 1: attention (4 + 6) + 2 (4 + 3) + (6 + 4) a layer, MLPs 2 (4 + 8) + (8 + 4) and 2 (4 + 6) + (6 + 4)
    assert sparse.adapters(1) == 2 * 34 + 36 + 30


def test_a_plan_tells_the_weights_that_a_token_goes_through(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B))
    recipe = composed("recipe=grpo_math", "model=hf", f"model.path={tmp_path}", "model.lora.rank=16")
    assert (
        "30,532.1 M parameters, 3,353.0 M of them for a token, LoRA of rank 16 on attention and dense layers, not on experts: 13.4 M"
        in plan.describe_model(recipe)
    )


# -- files -------------------------------------------------------------------------------------------------------------------------


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, list[int]], dtype: str = "BF16") -> None:
    """A config.json, and a safetensors file that is nothing but its header."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}).encode()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


UNKNOWN = {**SIDES, "vocab_size": 100, "model_type": "of_tomorrow", "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("tensors", "dtype", "parameters", "counted"),
    [
        ({"embed": [100, 32], "layers": [3, 10000], "lm_head.weight": [100, 32]}, "BF16", 33200, False),  # the head is the embedding
        ({"all": [shapes.read_shape(UNKNOWN).parameters + 100]}, "F32", shapes.read_shape(UNKNOWN).parameters, True),
        ({"packed": [50000]}, "U8", shapes.read_shape(UNKNOWN).parameters, True),
    ],
    ids=["other", "near", "packed"],
)
def test_the_files_of_an_unknown_family_are_believed(
    tensors: dict[str, list[int]], dtype: str, parameters: int, counted: bool, tmp_path: Path
) -> None:
    write_model(tmp_path, UNKNOWN, tensors, dtype)
    recipe = composed("recipe=grpo_math", "model=hf", f"model.path={tmp_path}")
    shape = shapes.find_shape(recipe)
    assert shape is not None and (shape.parameters, shape.counted) == (parameters, counted)
    told = "0.0 M parameters in its files (by its config.json, read as that of a Llama, 0.0 M)" in plan.describe_model(recipe)
    assert told is not counted


@pytest.mark.parametrize(("times", "parameters"), [(1000, 58_880), (1, 58_880), (0.5, 52_640)])
def test_a_known_family_has_no_more_weights_than_its_files(times: float, parameters: int, tiny_model: Path, tmp_path: Path) -> None:
    """They may hold more: layers that predict further tokens."""
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": int(times * config["vocab_size"])}))
    shape = shapes.find_shape(composed("recipe=grpo_math", "model=hf", f"model.path={folder}"))
    assert shape is not None and shape.parameters == parameters


def test_named_targets_of_adapters_are_counted_by_hand(tiny_model: Path) -> None:
    """TINY: h = 4, q = 6, kv = 3, i = 8, 2 layers, a vocabulary of 10."""
    wanted = {
        ("q_proj",): 2 * 10,
        ("q_proj", "self_attn.v_proj"): 2 * (10 + 7),
        ("model.layers.0.mlp.down_proj", "layers.1.mlp.down_proj"): 2 * 12,
        ("qkv_proj", "q_proj"): 2 * (10 + 7 + 7),
        ("lm_head",): 4 + 10,
        ("c_proj",): 2 * 12,
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"): 2 * 70,
    }
    assert {targets: TINY.adapters(1, targets) for targets in wanted} == wanted
    words = ["recipe=grpo_math", "model=hf", f"model.path={tiny_model}", "model.lora.rank=8"]
    every, named = (plan.build_job(composed(*words, *more)) for more in ([], ["model.lora.targets=[q_proj]"]))
    assert every is not None and named is not None
    assert (every.trained, named.trained) == (8 * 2 * (48 * 4 + 64 * 2 + 32 * 2 + 48 * 3 + 96 * 3), 8 * 2 * (48 + 64))
    assert ", LoRA of rank 8: 0.0 M" in plan.describe_model(composed(*words, "model.lora.targets=[q_proj]"))


def test_parts_are_summed_and_an_index_stands_for_parts_that_are_not_here(tmp_path: Path) -> None:
    index: dict[str, Any] = {"metadata": {"total_size": 90000}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name, size in (("a", 300), ("b", 41)):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, {}, {name: [size, 100]})
        (tmp_path / name / "model.safetensors").rename(tmp_path / index["weight_map"][name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert shapes.count_stored_weights(tmp_path, {"torch_dtype": "bfloat16"}, tied=False) == 34100
    (tmp_path / "model-2.safetensors").unlink()
    assert shapes.count_stored_weights(tmp_path, {"torch_dtype": "bfloat16"}, tied=False) == 45000
    assert shapes.count_stored_weights(tmp_path, {}, tied=False) is None
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert shapes.count_stored_weights(tmp_path, {}, tied=False) is None


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    (tmp_path / "models--some--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(MIXTRAL_8X7B))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert shapes.find_folder("some/model") == snapshot
    assert shapes.find_folder("other/model") == Path("other/model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": 4}, "experts_per_token is 0; with experts=4 it is 1 to 4"),
        ({"experts": 4, "experts_per_token": 2}, "needs expert_intermediate"),
        ({"experts": 4, "experts_per_token": 2, "expert_intermediate": 8, "dense_layers": 3}, "dense_layers is 3, and there are 2 layers"),
    ],
)
def test_numbers_of_a_mixture_that_do_not_fit_together_are_refused(changes: dict[str, int], said: str, tmp_path: Path) -> None:
    sides = {name: getattr(TINY, name) for name in ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab", "tied")}
    assert ModelShape(**ShapeSection(**sides).model_dump()) == TINY
    with pytest.raises(ValidationError, match=said):
        ShapeSection(**sides, **changes)
    with pytest.raises(UserError, match=said):
        composed("recipe=grpo_math", "model=hf", "model.path=x", *(f"+model.shape.{k}={v}" for k, v in {**sides, **changes}.items()))
