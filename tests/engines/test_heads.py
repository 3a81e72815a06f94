"""Logits in float32 of a model in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rlkit.engines.heads import TokenScorer, compute_head_in_float32, compute_logprobs
from rlkit.engines.vllm_overrides import build_overrides
from rlkit.errors import UserError
from rlkit.profiling import host_estimate, memory_estimate
from tests.engines.test_packing import CPU, TEMPERATURE, model_of, samples_of
from tests.profiling.test_memory_estimate import JOB


@pytest.mark.parametrize("wide", [False, True])
def test_log_probs_are_those_of_the_hidden_states_in_float64(wide: bool) -> None:
    model = model_of("qwen3", torch.bfloat16)
    head, seen = model.get_output_embeddings(), list[Tensor]()
    with torch.no_grad():
        head.weight *= 100.0  # logits whose rounding to bfloat16 is seen
    scorer = TokenScorer(model)
    if wide:
        compute_head_in_float32(model)
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    samples = samples_of()
    chosen, entropy = compute_logprobs(scorer, samples, 9, TEMPERATURE, CPU)
    logs = torch.log_softmax(seen[0].double() @ head.weight.detach().double().T / TEMPERATURE, -1)  # [n, V]
    counts = torch.arange(9) < torch.tensor([len(sample.tokens) for sample in samples])[:, None]
    wanted = logs.gather(1, torch.cat([sample.tokens for sample in samples])[:, None])[:, 0]
    apart = (chosen[counts] - wanted).abs().max()
    assert apart < 1e-4 if wide else apart > 1e-3, apart
    (chosen.sum() + entropy.sum()).backward()
    assert head.weight.grad.dtype == torch.bfloat16 and head.weight.grad.abs().sum() > 0


def test_a_sampler_of_transformers_gets_the_same_logits() -> None:
    model = model_of("qwen3", torch.bfloat16)
    compute_head_in_float32(model)
    ids = torch.tensor([[3, 4, 5]])
    hidden = model.get_decoder()(ids).last_hidden_state
    logits = model(ids).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, hidden.float() @ model.get_output_embeddings().weight.float().T)


def test_vllm_gets_its_own_setting_and_another_head_is_refused() -> None:
    config = SimpleNamespace(model_type="qwen3", sliding_window=None)
    assert build_overrides(config, torch.bfloat16, float32_head=True) == {"head_dtype": "float32"}
    assert build_overrides(config, torch.bfloat16) == {}
    with pytest.raises(UserError, match=r"model\.float32_head=true: the head of this model is a Sequential"):
        compute_head_in_float32(SimpleNamespace(get_output_embeddings=lambda: nn.Sequential()))


def test_the_plan_counts_the_weight_and_its_gradient_in_float32() -> None:
    wide = replace(JOB, float32_head=True)
    more = memory_estimate.estimate_logits(wide) - memory_estimate.estimate_logits(JOB)
    assert more == 2 * 4 * JOB.shape.vocab * JOB.shape.hidden
    assert host_estimate.estimate_host_logits(wide) - host_estimate.estimate_host_logits(JOB) == more
    assert memory_estimate.estimate_logits(replace(wide, width=4)) == memory_estimate.estimate_logits(JOB)
