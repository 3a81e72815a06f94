"""Adapters and layers that are trained whole: exact in training, in what is sent, in both exports; refused where they would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlkit.assembly.base_model import build_lora
from rlkit.assembly.models import build_reference
from rlkit.assembly.plan import build_job
from rlkit.cli import export
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.lora import Adapters, LoraSettings
from rlkit.engines.reference import BaseOfPolicy
from rlkit.errors import UserError
from rlkit.profiling.memory_estimate import estimate_other_models
from rlkit.runtime.ranks import Ranks
from tests.backends import CPU
from tests.conftest import run
from tests.engines.test_experts import build_policy, plain_logprobs, samples, train
from tests.random_models import save_random_model

NIGHTLY = pytest.mark.nightly(part="matrices")
HEAD = ("lm_head", "embed_tokens", "norm")


def settings(**more: Any) -> LoraSettings:
    return LoraSettings(**{"rank": 4, "alpha": 8.0, "targets": "all-linear", "dora": False} | more)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("untied") / "model", "qwen3", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer, and one of experts with a shared one."""
    return save_random_model(tmp_path_factory.mktemp("sparse") / "model", "deepseek_v3")


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (1, {"rslora": True, "modules_to_save": HEAD}),
        pytest.param(3, {"rslora": True, "dora": True, "modules_to_save": ("lm_head",)}, marks=pytest.mark.slow),
        pytest.param(1, {"targets": ("q_proj", "lm_head")}, marks=NIGHTLY),
        pytest.param(3, {"modules_to_save": HEAD}, marks=NIGHTLY),
        pytest.param(1, {"dora": True, "rslora": True}, marks=NIGHTLY),
    ],
)
def test_both_exports_are_the_policy(stage: int, more: dict[str, Any], untied: Path, tmp_path: Path, ranks: Ranks) -> None:
    from peft import PeftModel

    policy = build_policy(untied, stage, settings(**more))
    before, after = policy.logprobs(samples(), 8)[0], train(policy)
    assert (after - before).abs().max() > 0.1
    policy.export(tmp_path / "merged")
    policy.export(tmp_path / "adapter", adapter=True)
    assert torch.allclose(plain_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), after, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(untied)
    assert torch.allclose(plain_logprobs(base), before, atol=1e-5)
    assert torch.allclose(plain_logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter")), after, atol=1e-5)
    states = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (untied, tmp_path / "merged")]
    moved = {name.split(".")[-2] for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert {name for name in moved if name in HEAD} == {*more.get("modules_to_save", ()), *more.get("targets", ())} & set(HEAD)


def test_the_scaling_of_rslora_is_alpha_over_the_root_of_the_rank(untied: Path) -> None:
    """arXiv 2312.03732: 8 / sqrt(4) = 4, not 8 / 4."""
    words = ["recipe=grpo_math", "model.lora.rank=4", "model.lora.alpha=8", "model.lora.rslora=true", "model.lora.modules_to_save=[norm]"]
    lora = build_lora(read_recipe(compose_config(words, None)))
    assert lora is not None and lora.scaling == 4.0 and lora.modules_to_save == ("norm",)
    adapters = Adapters(load_causal_lm(str(untied), torch.float32, offline=True), lora)
    assert {layer.scaling["default"] for layer in adapters.layers.values()} == {4.0}
    assert settings().scaling == 2.0


@pytest.mark.parametrize("names", [["lm_head", "embed_tokens", "norm"], ["experts"]])
def test_the_plan_counts_what_is_trained_whole(names: list[str], untied: Path, tmp_path: Path) -> None:
    """And the second model that is the reference then."""
    model = save_random_model(tmp_path / "model", "qwen3_moe") if names == ["experts"] else untied
    words = ["recipe=grpo_math", f"model.path={model}", "model.lora.rank=4", "engine.rollout=hf", "algorithm.kl_coef=0.1"]
    plain, whole = (
        build_job(read_recipe(compose_config([*words, *more], None))) for more in ([], [f"model.lora.modules_to_save=[{','.join(names)}]"])
    )
    assert plain is not None and whole is not None
    loaded = load_causal_lm(str(model), torch.float32, offline=True)
    adapters = Adapters(loaded, settings(modules_to_save=tuple(names)))
    trained = sum(parameter.numel() for parameter in loaded.parameters() if parameter.requires_grad)
    assert whole.trained == trained > plain.trained and len(adapters.whole) == (2 if names == ["experts"] else 3)
    assert estimate_other_models(plain)[0] == 0 and estimate_other_models(whole)[0] == plain.shape.parameters * 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"targets": ("q_proj", "lm_head")}, r"targets names lm_head, whose weight is that of model\.embed_tokens\.weight too"),
        ({"modules_to_save": ("lm_head",)}, r"modules_to_save names lm_head, whose weight is that of model\.embed_tokens\.weight too"),
        ({"modules_to_save": ("embed_tokens",)}, r"names model\.embed_tokens, whose weight is that of lm_head\.weight too"),
        ({"targets": ("q_proj", "v_porj")}, r"names 'v_porj', and no layer of this model is called that; it has v_proj"),
        ({"targets": ("roj",)}, r"names 'roj', and no layer of this model is called that"),
        ({"targets": ("q_proj", "embed_tokens")}, r"names layers that are not linear: model\.embed_tokens"),
        ({"targets": ("self_attn",)}, r"names layers that are not linear: model\.layers\.0\.self_attn"),
        ({"targets": "q_proj"}, r"targets='q_proj' is neither all-linear nor a list of names; write \[q_proj\]"),
        (
            {"modules_to_save": ("mlp",)},
            r"names model\.layers\.0\.mlp, of which model\.lora\.targets adapts model\.layers\.0\.mlp\.gate_proj",
        ),
        ({"modules_to_save": ("rotary_emb",)}, r"names 'rotary_emb', and no layer of this model is called that"),
    ],
)
def test_what_would_be_lost_or_is_not_there_is_refused(more: dict[str, Any], message: str, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=message):
        Adapters(load_causal_lm(str(tiny_model), torch.float32, offline=True), settings(**more))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.lora.modules_to_save=[norm]", "engine.lora_sync=adapter"], "vLLM takes no whole modules in an adapter; set it to merged"),
        (["model.load_in_4bit=true", "model.lora.dora=true", "engine.zero_stage=3"], "in 4 bits does not work under engine.zero_stage=3"),
        (["model.lora.rslora=2"], r"model\.lora\.rslora=2 is not valid"),
        (["model.lora.modules_to_save=norm"], r"model\.lora\.modules_to_save='norm' is not valid"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(compose_config(["recipe=grpo_math", "model.lora.rank=4", *words], None))


def test_experts_and_routers_get_no_adapters(sparse: Path, tmp_path: Path, ranks: Ranks) -> None:
    """Attention, the dense layer and the shared expert do. Peft would read a file of the latter two as one of experts."""
    policy = build_policy(sparse, 1, settings())
    assert policy.adapters is not None
    adapted = {name.removeprefix("model.layers.").rpartition(".")[0] for name in policy.adapters.layers}
    assert adapted == {"0.self_attn", "1.self_attn", "0.mlp", "1.mlp.shared_experts"}
    with pytest.raises(UserError, match=r"peft takes model\.layers\.0\.mlp\.down_proj, .* of this model for experts as it reads a file"):
        policy.adapters.check_files()
    attention = Adapters(load_causal_lm(str(sparse), torch.float32, offline=True), settings(targets=("q_b_proj", "o_proj")))
    attention.check_files()
    with pytest.raises(UserError, match="experts of a mixture of experts are one tensor and get no adapters"):
        Adapters(load_causal_lm(str(sparse), torch.float32, offline=True), settings(targets=("q_b_proj", "experts")))


def test_a_policy_with_whole_layers_is_not_its_own_reference(untied: Path, ranks: Ranks) -> None:
    """Without its adapters it is not what it was; a policy that has nothing but adapters is."""
    recipe = read_recipe(compose_config(["recipe=grpo_math", "sampling.temperature=1.0"], None))
    context: Any = SimpleNamespace(
        recipe=recipe,
        model_path=str(untied),
        dtype=torch.float32,
        ranks=SimpleNamespace(device=CPU, sp_group=None),
        report=SimpleNamespace(show_phase=lambda name: None),
    )
    for names in ((), ("norm",)):
        policy = build_policy(untied, 1, settings(modules_to_save=names))
        reference, before = build_reference(context, policy), policy.logprobs(samples(), 8)[0]
        train(policy)
        assert torch.allclose(reference.logprobs(samples(), 8)[0], before, atol=1e-6)
        assert torch.allclose(BaseOfPolicy(policy).logprobs(samples(), 8)[0], before, atol=1e-6) is not bool(names)


@NIGHTLY
def test_a_run_with_a_whole_head_and_a_reference(small: list[str], untied: Path, tmp_path: Path) -> None:
    """The reference is what the policy was, its head and norm too; sampler and trainer agree; the export is read by peft."""
    words = [*small, f"model.path={untied}", "steps=3", "eval.every=0", "eval.problems=1", "checkpoint.every=3", "algorithm.kl_coef=0.1"]
    lora = ["model.lora.rank=4", "model.lora.modules_to_save=[lm_head,norm]", "model.lora.rslora=true", "checkpoint.export=adapter"]
    ended = run(*words, *lora, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    _, *rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0 and rows[2]["kl"] > 1e-4
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in rows)
    assert export.run_export([str(tmp_path / "run"), f"to={tmp_path / 'model'}"]) == 0
    written = [(folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "run" / "model", tmp_path / "model")]
    assert written[0] == written[1]
