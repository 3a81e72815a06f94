"""A base in 4 bits: held small, frozen, and sent and exported as what the trainer multiplies with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlkit.engines import quantization
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.loading import checkpoint_names, load_causal_lm
from rlkit.engines.lora import LoraSettings
from rlkit.engines.reference import BaseOfPolicy, ReferenceModel
from rlkit.errors import UserError
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed
from tests.engines.test_packing import CPU, TEMPERATURE, model_of, samples_of


def test_without_the_library_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'rlkit\[four_bit\]'"):
        quantization.build_settings(torch.float32)


@pytest.fixture(scope="module")
def library() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra four_bit): no base in 4 bits is tried here")


@pytest.fixture(scope="module")
def even_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Whose linear layers have inputs of 64 and 128."""
    folder = tmp_path_factory.mktemp("even")
    model_of("qwen3", torch.float32, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder)
    return str(folder)


def test_rows_that_a_cpu_takes_back_wrongly_are_refused(library: None, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="multiples of 64, and this model has 48, 96; set it to false"):
        load_causal_lm(str(tiny_model), torch.float32, offline=True, four_bits=True)


@pytest.mark.parametrize("stage", [1, 3])
def test_what_is_exported_is_what_the_trainer_says(stage: int, library: None, ranks: Ranks, even_model: str, tmp_path: Path) -> None:
    policy = PolicyLearner(
        even_model,
        torch.float32,
        backend=deepspeed(stage),
        temperature=TEMPERATURE,
        offline=True,
        lora=LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=False),
        four_bits=True,
    )
    plain = load_causal_lm(even_model, torch.float32, offline=True)
    linear = policy.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert linear.dtype == torch.uint8 and getattr(linear, "ds_numel", linear.numel()) == 128 * 64 // 2  # two a byte
    base = {name: tensor.clone() for name, tensor in policy.base_weights()}
    assert list(base) == checkpoint_names(plain)
    far_off = {name: float((tensor - plain.state_dict()[name]).norm() / tensor.norm()) for name, tensor in base.items()}
    assert all(0.08 < far < 0.1 if name.endswith("proj.weight") else far == 0.0 for name, far in far_off.items()), far_off
    samples = samples_of()
    before, _ = policy.logprobs(samples, 9)
    for _ in range(2):
        with policy.enable_grad():
            policy.backward(policy.logprobs(samples, 9)[0].sum())
        assert policy.step(0.05).applied
    after, _ = policy.logprobs(samples, 9)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(BaseOfPolicy(policy).logprobs(samples, 9)[0], before)  # the reference: what it was
    assert all(torch.equal(tensor, base[name]) for name, tensor in policy.base_weights())
    policy.export(tmp_path)
    exported = ReferenceModel(str(tmp_path), torch.float32, temperature=TEMPERATURE, device=CPU, offline=True)
    assert (exported.logprobs(samples, 9)[0] - after).abs().max() < 1e-5
    assert "quantization" not in (tmp_path / "config.json").read_text()
