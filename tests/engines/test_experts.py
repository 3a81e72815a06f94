"""A mixture of experts: what is sent and exported is its checkpoint, its routers compute in float32, no auxiliary loss is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlkit import run as door
from rlkit.engines.checkpoint_format import CheckpointFormat, group_by_overlap
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.lora import LoraSettings
from rlkit.engines.reference import ReferenceModel
from rlkit.engines.routers import find_routers
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Sample, Stop
from tests.backends import CPU, deepspeed
from tests.conftest import run
from tests.random_models import save_random_model

SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
NIGHTLY = pytest.mark.nightly(part="matrices")
FAMILIES = ("mixtral", "deepseek_v3", "olmoe", "granitemoe", "glm4_moe", "qwen2_moe")
IDS = torch.arange(40, 80).unsqueeze(0)


def files(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [
        Sample(
            key=Key(i, 0, 0),
            prompt=tuple(range(40 + i, 46 + i)),
            tokens=torch.randint(40, 100, (8,), generator=generator),
            mask=torch.ones(8, dtype=torch.bool),
            rollout_logprobs=torch.zeros(8),
            versions=torch.zeros(8, dtype=torch.int32),
            stop=Stop.LENGTH,
            text="",
        )
        for i in range(4)
    ]


def build_policy(model: Path, stage: int = 1, lora: LoraSettings | None = None, dtype: torch.dtype = torch.float32) -> PolicyLearner:
    return PolicyLearner(str(model), dtype, backend=deepspeed(stage, extra=SHARDED), temperature=1.0, offline=True, lora=lora)


def train(policy: PolicyLearner) -> Tensor:
    """Three large updates; the log-probs after them."""
    for sign in (1.0, -1.0, 1.0):
        with policy.enable_grad():
            policy.backward(sign * policy.logprobs(samples(), 8)[0].sum() / 20)
        assert policy.step(0.03).applied
    return policy.logprobs(samples(), 8)[0]


def plain_logprobs(model: Any) -> Tensor:
    """By transformers alone."""
    rows = torch.stack([torch.cat([torch.tensor(sample.prompt), sample.tokens]) for sample in samples()])
    with torch.no_grad():
        logprobs = model.eval()(rows).logits[:, 5:-1].log_softmax(-1)
    return logprobs.gather(-1, rows[:, 6:].unsqueeze(-1)).squeeze(-1)


def check_format(model: Path, folder: Path, stage: int, lora: LoraSettings | None) -> None:
    """Untrained, what is sent and exported is the files; trained, it is the policy."""
    policy, held = build_policy(model, stage, lora), files(model)
    sent = dict(policy.weights())
    assert list(sent) == policy.names and sent.keys() == held.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in held.items())
    trained = train(policy)
    policy.export(folder)
    written, sent = files(folder), dict(policy.weights())
    assert written.keys() == held.keys() and all(torch.equal(sent[name], tensor) for name, tensor in written.items())
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(plain_logprobs(reloaded), trained, atol=1e-5)
    reloaded.save_pretrained(folder.with_name("again"))
    again = files(folder.with_name("again"))
    assert again.keys() == written.keys() and all(torch.equal(again[name], tensor) for name, tensor in written.items())


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("sparse") / "model", "qwen3_moe")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_experts_are_sent_and_exported_one_by_one(stage: int, sparse: Path, tmp_path: Path, ranks: Ranks) -> None:
    assert files(sparse)["model.layers.0.mlp.experts.3.gate_proj.weight"].shape == (32, 64)
    lora = LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=False) if stage == 3 else None
    check_format(sparse, tmp_path / "model", stage, lora)


@NIGHTLY
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_every_family(family: str, stage: int, adapted: bool, tmp_path: Path, ranks: Ranks) -> None:
    lora = LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=False) if adapted else None
    check_format(save_random_model(tmp_path / "model", family), tmp_path / "export", stage, lora)


@NIGHTLY
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "glm4_moe"])
def test_vllm_serves_an_export(family: str, tmp_path: Path) -> None:
    """Loaded from the disk: without a GPU vLLM takes them in no other way."""
    model, out = save_random_model(tmp_path / "model", family), tmp_path / "out.json"
    ended = run(str(model), str(tmp_path / "export"), str(out), program="served_export.py", timeout=290)
    assert ended.code == 0, ended.out + ended.err
    found = json.loads(out.read_text())
    assert found["apart"] < 1e-4 and found["moved"] > 0.1


def test_tensors_that_share_a_name_wait_for_each_other() -> None:
    names = {"q": ["qkv"], "norm": ["norm"], "k": ["qkv"], "experts": ["e.0", "e.1"], "v": ["qkv"]}
    together = ("q", "k", "v")
    assert group_by_overlap(names) == {"q": together, "norm": ("norm",), "k": together, "experts": ("experts",), "v": together}
    assert group_by_overlap({"a": ["1"], "b": ["2"], "c": ["1", "2"]})["b"] == ("a", "b", "c")


def test_tensors_that_are_one_in_the_files_are_put_together() -> None:
    """HRM has query, key, value and gate of a layer in one tensor of its files."""
    from transformers import HrmTextConfig

    config = HrmTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=2, vocab_size=64, num_layers_per_stack=1)
    model = AutoModelForCausalLM.from_config(config)
    state = model.state_dict()
    form = CheckpointFormat(model, list(state))
    reverted = dict(form.revert(iter(state.items())))
    joined = torch.cat([state[f"model.L_module.layers.0.self_attn.{kind}_proj.weight"] for kind in ("gate", "q", "k", "v")])
    assert torch.equal(reverted["model.L_module.layers.0.attn.gqkv_proj.weight"], joined)
    assert list(reverted) == form.names and len(form.names) < len(state)


@pytest.mark.parametrize("family", ["qwen3_moe", *(pytest.param(family, marks=NIGHTLY) for family in FAMILIES)])
def test_routers_compute_in_float32(family: str, tmp_path: Path) -> None:
    """The logits are the product in float32 of the bfloat16 weights and hidden states, in the policy, its reference and the hf engine."""
    model = load_causal_lm(str(save_random_model(tmp_path / "model", family)), torch.bfloat16, offline=True)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def watch(router: nn.Module, arguments: Any, outputs: Any) -> None:
        logits = next(part for part in outputs if part.shape[-1] == 4 and part.is_floating_point())
        seen.append((router, arguments[0].reshape(-1, arguments[0].shape[-1]), logits))

    for router in find_routers(model).values():
        router.register_forward_hook(watch)
    model(IDS).logits.float().logsumexp(-1).sum().backward()
    assert seen
    for router, hidden, logits in seen:
        assert hidden.dtype is torch.bfloat16 and router.weight.dtype is torch.bfloat16
        assert logits.dtype is torch.float32 and torch.equal(logits, nn.functional.linear(hidden.float(), router.weight.float()))
        assert router.weight.grad is not None and router.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("jetmoe", {"model.layers.0.self_attention.experts.router", "model.layers.0.mlp.router"}),
        ("jamba", {"model.layers.0.feed_forward.router"}),
        ("phimoe", {"model.layers.0.mlp.router"}),
        ("qwen3", set()),
    ],
)
def test_routers_are_found(family: str, names: set[str], tmp_path: Path) -> None:
    """In bfloat16 all families compute; JetMoE declares a whole attention, Jamba every linear layer of a name."""
    more = {"expert_layer_offset": 0, "attn_layer_offset": 0, "num_experts": 4} if family == "jamba" else {}
    model = load_causal_lm(str(save_random_model(tmp_path / "model", family, **more)), torch.bfloat16, offline=True)
    assert {name for name in find_routers(model) if ".0." in name} == names
    assert model(IDS).logits.isfinite().all()


def test_routers_compute_in_float32_under_zero_3(sparse: Path, ranks: Ranks) -> None:
    """Where F.linear is a function of DeepSpeed's."""
    policy = build_policy(sparse, 3, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    for router in find_routers(policy.model).values():
        router.register_forward_hook(lambda router, arguments, outputs: seen.append(outputs[0].dtype))
    train(policy)
    assert len(seen) == 8 and set(seen) == {torch.float32}


def test_no_auxiliary_loss_is_learned(sparse: Path, tmp_path: Path, ranks: Ranks) -> None:
    """A configuration that asks transformers for one changes no gradient."""
    asked = save_random_model(tmp_path / "asked", "qwen3_moe", output_router_logits=True, router_aux_loss_coef=10.0)
    gradients = []
    for model in (sparse, asked):
        policy = build_policy(model)
        with policy.enable_grad():
            policy.logprobs(samples(), 8)[0].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in policy.model.named_parameters()})
    plain, other = gradients
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert plain["model.layers.0.mlp.gate.weight"].abs().max() > 0  # routers learn from the loss itself
    reference = ReferenceModel(str(asked), torch.float32, temperature=1.0, device=CPU, offline=True)
    assert torch.equal(reference.logprobs(samples(), 8)[0], build_policy(asked).logprobs(samples(), 8)[0])


@pytest.mark.parametrize("more", [["dry_run=true"], []])
def test_vllm_without_a_gpu_is_refused_at_once(more: list[str], sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=grpo_math", f"model.path={sparse}", f"output_dir={tmp_path / 'run'}", *more]
    assert door.main(words) == 2
    assert "is a mixture of 4 experts, of which vLLM takes new weights wrongly without a GPU; set it to hf" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert door.main([*words, "engine.rollout=hf", "dry_run=true"]) == 0
    capsys.readouterr()
    assert door.main([*words, "hardware.gpu_gib=80", "dry_run=true", "model.lora.rank=4", "model.lora.modules_to_save=[norm]"]) == 0
    assert "LoRA of rank 4 on attention and dense layers, not on experts: 0.0 M, and norm whole" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_experts(small: list[str], sparse: Path, tmp_path: Path) -> None:
    """Under ZeRO 3, sampled with generate; the reference is a second model."""
    words = [*small, f"model.path={sparse}", "steps=3", "eval.every=0", "eval.problems=1", "checkpoint.every=0", "algorithm.kl_coef=0.1"]
    ended = run(*words, "engine.zero_stage=3", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    _, *rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0 and rows[2]["kl"] > 1e-3
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in rows)
    assert files(tmp_path / "run" / "model").keys() == files(sparse).keys()
