"""The certificate of a model: families whose traps are handled pass it, and fail it where the handling is taken out."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlkit.engines import certificate, heads, packing, rope, training_shape, twin
from rlkit.engines.certificate import WEIGHTS_LIMIT, certify, compare_weights
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.lora import LoraSettings
from rlkit.engines.vllm_overrides import build_overrides
from rlkit.errors import UserError
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed
from tests.conftest import run
from tests.random_models import save_random_model

CPU, CAUSAL, SCORE = torch.device("cpu"), "causal language model", "sequence classifier"
LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, "original_max_position_embeddings": 4096}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4, "intermediate_size": 256}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "functional dropout": ("seed_oss", {"residual_dropout": 0.3, "attention_dropout": 0.3, "head_dim": 32}),
    "dropout in the layer itself": ("opt", {"dropout": 0.3, "num_key_value_heads": None}),
    "dropout of layers": ("opt", {"dropout": 0.0, "layerdrop": 0.5, "num_key_value_heads": None}),
    "residual dropout": ("starcoder2", {"residual_dropout": 0.3}),
    "router noise": ("mixtral", {"router_jitter_noise": 0.3}),
    "sampling router": ("phimoe", {"router_jitter_noise": 0.3}),
    "longrope": ("phi3", {"rope_parameters": LONG_ROPE, "max_position_embeddings": 131072}),
    "dynamic NTK": ("llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 2048}),
    "window": ("mistral", {"sliding_window": 4096}),
    "windows of some layers": ("gemma3_text", {"sliding_window": 1024, "head_dim": 32}),
    "logit scale": ("cohere", {"logit_scale": 0.25}),
    "logits scaling": ("granite", {"logits_scaling": 8.0}),
    "soft caps of attention": ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": None, "head_dim": 32}),
    "soft cap of logits": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": 3.0, "head_dim": 32}),
    "sinks": ("gpt_oss", {"head_dim": 32, "num_local_experts": 4}),
}


def certify_family(name: str, cache: Path, kind: str = CAUSAL, checkpoint_every: int = 1) -> None:
    from transformers import AutoConfig

    family, settings = FAMILIES[name]
    config = AutoConfig.for_model(
        family, **{key: value for key, value in {**SMALL, **settings}.items() if value is not None or key in settings}
    )
    certify(config, kind, where=f"model.path {name}", cache=cache, checkpoint_every=checkpoint_every, device=CPU)


def drop_argument(name: str) -> Callable[..., Any]:
    """The attention as if it did not know an argument."""
    attention = packing.attention
    return lambda *given, **more: attention(*given, **{key: value for key, value in more.items() if key != name})


def train_all(model: Any, checkpoint_every: int = 0) -> Any:
    """As a model of transformers is trained elsewhere, without dropout modules."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


SHAPE, DROPOUT = (training_shape, "set_training_shape", train_all), (training_shape, "disable_dropout", lambda model: torch.manual_seed(0))
PIN, SCALE = (rope, "pin_rope", lambda model, longest: None), (heads, "find_logit_changes", lambda config: (1.0, None))
TRAPS: dict[str, tuple[tuple[Any, str, Any], str]] = {  # what is taken out, and what the certificate says
    "functional dropout": (SHAPE, "random in training"),
    "dropout in the layer itself": (DROPOUT, "random in training"),
    "dropout of layers": (SHAPE, "random in training"),
    "residual dropout": (SHAPE, "random in training"),
    "router noise": (SHAPE, "random in training"),
    "sampling router": (SHAPE, "random in training"),
    "longrope": (PIN, "a sample of 5 tokens beside one of 40, .* chosen by the longest sample"),
    "dynamic NTK": (PIN, "a sample of 5 tokens beside one of 40, .* chosen by the longest sample"),
    "window": ((packing, "attention", drop_argument("sliding_window")), "a sample of 40 tokens alone, .* such as a window"),
    "windows of some layers": ((packing, "attention", drop_argument("sliding_window")), "a sample of 40 tokens alone, .* such as a window"),
    "logit scale": (SCALE, "a sample of 5 tokens alone, .* its head does more"),
    "logits scaling": (SCALE, "a sample of 5 tokens alone, .* its head does more"),
    "soft caps of attention": ((packing, "attention", drop_argument("softcap")), "a sample of 5 tokens alone, .* its attention"),
    "soft cap of logits": (SCALE, "a sample of 5 tokens alone, .* its head does more"),
    "sinks": ((packing, "attention", drop_argument("s_aux")), "a sample of 5 tokens alone, .* its attention"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_exact_and_its_trap_is_seen_where_it_is_not_handled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certify_family(name, tmp_path / "handled")
    (where, function, without), message = TRAPS[name]
    monkeypatch.setattr(where, function, without)
    with pytest.raises(UserError, match=rf"model.path {name}: models of type .* cannot be trained exactly: .*{message}.*choose another"):
        certify_family(name, tmp_path / "not handled")


@pytest.mark.parametrize("name", ["window", "longrope", "residual dropout", "soft caps of attention"])
def test_so_is_a_reward_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certify_family(name, tmp_path / "handled", SCORE)
    (where, function, without), _ = TRAPS[name]
    monkeypatch.setattr(where, function, without)
    with pytest.raises(UserError, match=r"cannot be trained exactly: scores of a sample"):
        certify_family(name, tmp_path / "not handled", SCORE)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"is_decoder": True}, "log-probs of a sample of 5 tokens alone, .* its head does more"),  # a dense layer and a norm in it
        ("doge", {}, "log-probs of a sample of 5 tokens alone, .* its attention"),  # a mask that it computes of the values
        ("modernbert-decoder", {}, "outputs of packed samples cannot be computed: TypeError: "),
    ],
)
def test_what_cannot_be_handled_is_refused(family: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **settings)
    with pytest.raises(UserError, match=f"models of type {family} cannot be trained exactly: {message}"):
        certify(config, CAUSAL, where="model.path x", cache=tmp_path, checkpoint_every=0, device=CPU)
    assert not any(tmp_path.iterdir())


def test_it_is_written_once_for_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 3 CPU seconds the first time, of a model in full size."""
    from transformers import AutoConfig

    config, built = AutoConfig.for_model("qwen3_moe"), list[Any]()
    build = twin.build_twin
    monkeypatch.setattr(twin, "build_twin", lambda *given: built.append(given) or build(*given))

    def check(**more: Any) -> None:
        settings: dict[str, Any] = {"where": "model.path x", "cache": tmp_path, "checkpoint_every": 1, "device": CPU, **more}
        certify(config, settings.pop("kind", CAUSAL), **settings)

    before = time.process_time()
    check()
    assert time.process_time() - before < 3.0
    check()
    check(where="model.path y", checkpoint_every=2)
    assert len(built) == 1
    check(kind=SCORE)
    check(checkpoint_every=0)
    config.rope_parameters["rope_theta"] = 5.0
    check()
    monkeypatch.setattr(certificate, "version", lambda library: "1.0")
    check()
    assert len(built) == 5


def test_a_twin_keeps_what_its_model_is_and_crosses_every_threshold() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=12, sliding_window=1024)
    small = twin.build_twin_config(config)
    assert type(small) is type(config) and small.head_dim == config.head_dim and small.query_pre_attn_scalar == config.query_pre_attn_scalar
    assert small.layer_types == ["sliding_attention", "full_attention"] and small.num_hidden_layers == 2
    assert small.sliding_window == 8 and small.rope_parameters == config.rope_parameters and config.sliding_window == 1024
    phi = twin.build_twin_config(AutoConfig.for_model("phi3", **SMALL, rope_parameters=LONG_ROPE, max_position_embeddings=131072))
    assert phi.rope_parameters["original_max_position_embeddings"] == 8 and phi.rope_parameters["long_factor"] == [4.0] * 16


@pytest.mark.parametrize(("stage", "lora"), [(1, False), (3, False), (1, True)])
def test_a_model_with_its_own_weights_is_compared_before_the_first_step(
    stage: int, lora: bool, tiny_model: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=False) if lora else None
    policy = PolicyLearner(str(tiny_model), torch.float32, backend=deepspeed(stage), temperature=0.7, offline=True, lora=adapters)
    attention = policy.model.config._attn_implementation
    assert compare_weights(policy.model, policy.backend.module, CPU) < 1e-5
    assert policy.model.config._attn_implementation == attention == packing.NAME
    monkeypatch.setattr(packing, "attend_per_run", lambda query, *_: query.transpose(1, 2))
    assert compare_weights(policy.model, policy.backend.module, CPU) > WEIGHTS_LIMIT[torch.float32]


def test_a_sampler_with_soft_caps_takes_the_attention_that_has_them(tmp_path: Path) -> None:
    """transformers' default leaves them out."""
    model = load_causal_lm(str(save_random_model(tmp_path / "model", "gemma2", attn_logit_softcapping=0.01)), torch.float32, offline=True)
    assert model.config._attn_implementation == "eager"
    plain = load_causal_lm(str(save_random_model(tmp_path / "other", "gemma2", attn_logit_softcapping=None)), torch.float32, offline=True)
    assert plain.config._attn_implementation == "sdpa"


def test_in_bfloat16_packed_is_as_near_to_float32_as_plain_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is run on a GPU, with the attention of a CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def find() -> certificate.Difference | None:
        plain = twin.build_twin(AutoConfig.for_model("mistral", **SMALL, sliding_window=64), AutoModelForCausalLM, certificate.LONGEST)
        scorer = heads.TokenScorer(training_shape.set_training_shape(copy.deepcopy(plain)))
        return certificate.find_half_difference(plain, scorer, CPU)

    assert find() is None
    monkeypatch.setattr(packing, "attention", drop_argument("sliding_window"))
    difference = find()
    assert difference is not None and difference.row == "a sample of 40 tokens alone"


def test_heads_with_sinks_are_not_spread_over_ranks() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = twin.build_twin_config(AutoConfig.for_model("gpt_oss", **SMALL, head_dim=32, num_local_experts=4))
    with pytest.raises(UserError, match=r"gpt_oss have sinks in their attention.*set engine.sequence_parallel=1"):
        packing.set_packed_attention(AutoModelForCausalLM.from_config(config), lambda attention, config: ("shared", attention))


def test_vllm_is_told_where_it_would_compute_another_model() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("llama", **SMALL, rope_parameters=DYNAMIC_ROPE)
    assert build_overrides(config, torch.float32) == {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert build_overrides(AutoConfig.for_model("llama", **SMALL), torch.float32) == {}
    assert build_overrides(AutoConfig.for_model("llama", **SMALL, rope_parameters={**DYNAMIC_ROPE, "alpha": 1000.0}), torch.float32) == {}
    assert build_overrides(AutoConfig.for_model("cohere2", sliding_window=4096), torch.float32) == {"sliding_window": 4095}
    apertus = AutoConfig.for_model("apertus")
    assert build_overrides(apertus, torch.bfloat16) == {}
    with pytest.raises(UserError, match=r"vLLM holds parameters of their activation xielu in bfloat16.*set engine.rollout=hf"):
        build_overrides(apertus, torch.float32)
    with pytest.raises(UserError, match=r"models of type gemma3n_text: vLLM returns no log-probs.*set engine.rollout=hf"):
        build_overrides(AutoConfig.for_model("gemma3n_text"), torch.bfloat16)


def test_settings_of_single_layers_go_with_them_into_the_twin() -> None:
    """In Gemma 4 full attention has wider heads, and in Gemma 3n later layers have the keys of earlier ones."""
    from transformers import AutoConfig

    small = twin.build_twin_config(AutoConfig.for_model("gemma4_text"))
    assert small.layer_types == ["sliding_attention", "full_attention"] and small.to_dict()["per_layer_config"] == {"1": {"head_dim": 512}}
    shared = twin.build_twin_config(AutoConfig.for_model("gemma3n_text"))
    assert (shared.num_hidden_layers, shared.num_kv_shared_layers) == (4, 2)
    assert shared.layer_types[2:] == shared.layer_types[:2] == ["sliding_attention", "full_attention"]


@pytest.mark.slow
def test_a_run_ends_before_it_loads_what_it_cannot_train_exactly(small: list[str], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "doge"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
    own = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, "model_type": "doge", "architectures": ["DogeForCausalLM"]}))
    save_file({}, folder / "model.safetensors")
    ended = run(*small, f"model.path={folder}", cwd=tmp_path)
    assert ended.code == 2 and "models of type doge cannot be trained exactly" in ended.err, ended.err
    assert "Traceback" not in ended.err
