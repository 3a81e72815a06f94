"""The roofline: numbers worked out by hand, operations as torch counts them in the real model, and measurements only on request."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlkit.assembly import common, shapes
from rlkit.profiling import roofline
from rlkit.profiling.roofline import GEN4, DeviceLimits, Roofline
from rlkit.report.names import format_roofline
from tests.profiling.test_memory_estimate import JOB, TINY, composed

UNIT = DeviceLimits(
    operations=1.0, bandwidth=1.0, bus=1.0
)  # limits in operations and bytes; TINY has 2 x 168 weights in layers, 40 in its head


def made(job: Any = JOB, machine: DeviceLimits = UNIT, **more: bool) -> Roofline:
    return Roofline(job, machine, **more)


def test_operations_by_hand() -> None:
    # 2 (336 x 3 + 40 x 2), and 4 operations x 2 layers x 6 numbers of a query x (1 + 2 + 3) pairs
    assert roofline.count_flops(TINY, inputs=[3], outputs=2) == 2 * (1008 + 80) + 48 * 6
    assert roofline.count_forward_flops(TINY, [(2, [3]), (0, [0])]) == roofline.count_flops(TINY, [4], 3)  # the last token is never read
    # of two completions the second computes 1 token more, which looks back on 3
    assert roofline.count_forward_flops(TINY, [(2, [3, 2])]) == roofline.count_flops(TINY, [4], 5) + 2 * 336 + 48 * 3
    assert roofline.count_nominal_flops(TINY, [(2, [3])]) == 2 * 5 * 376 + 48 * 15
    assert roofline.count_nominal_flops(TINY, [(2, [3, 1])]) == 2 * 6 * 376 + 48 * (15 + 3)


def test_a_rollout_by_hand() -> None:
    asked = [(2, [3, 1])]
    # 3 steps read 376 weights of 2 bytes; the tokens after the first look back on 3 and on 4, of 24 bytes each
    read = 3 * 376 * 2 + (3 + 4) * 24
    # the prompt once; then two tokens go through the layers, with 3 + 4 pairs, and 3 + 1 outputs through the head
    computed = 2 * 336 * 4 + 48 * (3 + 7) + 2 * 40 * 4
    assert made(machine=replace(UNIT, operations=1e9)).rollout([asked]) == read
    assert made(machine=replace(UNIT, bandwidth=1e9)).rollout([asked]) == computed
    assert made().rollout([asked]) == max(read, computed)
    assert made().rollout([asked, asked]) == 2 * max(read, computed)  # rounds wait for each other
    assert made(replace(JOB, tensor_parallel=2)).rollout([asked]) == max(read, computed) / 2
    assert made().rollout([]) == made().rollout([[]]) == 0.0


def test_passes_and_updates_by_hand() -> None:
    asked = [(2, [3])]
    whole, body = 2 * (336 * 4 + 40 * 3) + 48 * 10, 2 * 336 * 4 + 48 * 10
    assert made().observe(asked, models=2, values=True) == 2 * whole + body
    assert made(replace(JOB, teacher=TINY)).observe(asked, models=1, values=True) == 2 * whole + body
    assert made().update(asked) == 3 * whole
    assert made(replace(JOB, rank=2)).update(asked, critic=True) == 2 * whole + 3 * body
    assert made().update(asked, policy=False) == 0.0
    assert made(machine=replace(UNIT, operations=1000.0)).compute_mfu(asked, seconds=8.0) == 3 * (2 * 5 * 376 + 48 * 15) / 8000


def test_a_sync_by_hand() -> None:
    assert made().sync(offloaded=True, sent=True) == 2 * 436 * 2
    assert made(offloads=True).sync(offloaded=True, sent=False) == 12 * 436
    assert made(replace(JOB, offload=True), offloads=True).sync(offloaded=True, sent=False) == 0.0
    adapted = replace(JOB, rank=2)  # 280 weights
    assert (made(adapted).sync(False, True), made(adapted, sends_adapter=True).sync(False, True)) == (2 * 436 * 2, 2 * 280 * 2)
    assert roofline.compute_ratios({"sync": 2.0, "update": 0.0, "observe": 1.0}, {"time/sync": 3.0, "time/update": 1.0}) == {
        "floor/sync": 1.5
    }


def test_torch_counts_as_many_operations_in_the_real_model(tiny_model: Path) -> None:
    """Of attention torch counts all pairs, also those that the causal mask leaves out."""
    from transformers import AutoModelForCausalLM

    shape, n = shapes.find_shape(composed("recipe=grpo_math", f"model.path={tiny_model}")), 12
    assert shape is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    with FlopCounterMode(display=False) as counted:
        logits = model(input_ids=torch.arange(n)[None], use_cache=False).logits
    forward = counted.get_total_flops()
    masked = 4 * shape.layers * shape.heads * shape.head_dim * n * (n - 1) / 2
    assert forward == roofline.count_flops(shape, inputs=[n], outputs=n) + masked
    with FlopCounterMode(display=False) as counted:
        logits.sum().backward()
    assert counted.get_total_flops() == 2 * forward


def test_known_machines_are_looked_up_and_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(roofline, "measure_device", lambda device, dtype: asked.append(str(dtype)) or UNIT)
    gpu = torch.device("cuda", 0)
    assert roofline.find_device_limits(gpu, torch.bfloat16) == DeviceLimits(312e12, 2.039e12, GEN4) and not asked
    assert (
        roofline.find_device_limits(gpu, torch.float32) == UNIT and roofline.find_device_limits(torch.device("cpu"), torch.bfloat16) == UNIT
    )
    assert asked == ["torch.float32", "torch.bfloat16"]


def test_a_machine_is_measured_by_its_best_try(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, left = torch.device("cpu"), [0.0, 0.02, 0.01, 0.03]
    monkeypatch.setattr(roofline, "TRIES", 3)
    assert 0.01 <= roofline.measure_shortest(lambda: time.sleep(left.pop(0)), cpu) < 0.02  # the first, which warms up, does not count
    found = roofline.measure_device(cpu, torch.bfloat16)
    assert 1e8 < found.operations < 1e15 and 1e8 < found.bandwidth < 1e13
    monkeypatch.setattr(roofline, "measure_shortest", lambda work, device: 0.5)
    assert roofline.measure_device(cpu, torch.float32) == DeviceLimits(4 * 512**3, 2 * 2**25, roofline.GEN5)


def in_context(recipe: Any, ranks: Any) -> Any:
    return SimpleNamespace(recipe=recipe, ranks=ranks, dtype=torch.float32)


def test_nothing_is_measured_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    def refused(device: object, dtype: object) -> DeviceLimits:
        raise AssertionError("measured")

    monkeypatch.setattr(common, "find_device_limits", refused)
    words = ["recipe=grpo_math", f"model.path={tiny_model}"]
    main, other = (SimpleNamespace(main=here, device=torch.device("cpu")) for here in (True, False))
    assert common.build_roofline(in_context(composed(*words, "report.roofline=false"), main)) is None  # type: ignore[arg-type]
    assert common.build_roofline(in_context(composed(*words), other)) is None  # type: ignore[arg-type]
    assert common.build_roofline(in_context(composed("recipe=grpo_math", "model.path=some/model"), main)) is None  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="measured"):
        common.build_roofline(in_context(composed(*words), main))  # type: ignore[arg-type]


def test_of_a_shape_that_the_files_contradict_there_is_no_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "find_device_limits", lambda device, dtype: UNIT)
    main = SimpleNamespace(main=True, device=torch.device("cpu"))
    for counted in (True, False):
        monkeypatch.setattr(common.plan, "build_job", lambda recipe, counted=counted: replace(JOB, shape=replace(TINY, counted=counted)))
        assert (common.build_roofline(in_context(composed("recipe=grpo_math"), main)) is not None) is counted  # type: ignore[arg-type]


def test_a_mixture_reads_the_experts_that_its_tokens_can_choose_and_computes_those_that_they_do() -> None:
    """Of TINY with 8 experts of size 5, 2 for each token: attention 72 and the router 32 a layer, an expert 60, the head 40."""
    sparse = replace(TINY, experts=8, experts_per_token=2, expert_intermediate=5)
    assert roofline.count_flops(sparse, inputs=[1], outputs=1) == 2 * (2 * (72 + 32 + 2 * 60) + 40) + 48
    for rows, experts in ((1, 2), (3, 6), (5, 8)):
        read = made(replace(JOB, shape=sparse), replace(UNIT, operations=1e9)).rollout([[(2, [1] * rows)]])
        assert read == 2 * (2 * (72 + 32 + experts * 60) + 40)
    latent = replace(TINY, key_rank=4, rope_dim=1, value_dim=2)  # pairs cost 3 numbers of a query and 2 of a value
    assert roofline.count_flops(latent, [2], 0) - 2 * roofline.count_flops(latent, [1], 0) == 2 * 2 * 2 * (3 + 2)


def test_a_reward_model_has_a_head_of_one_number(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    monkeypatch.setattr(common, "find_device_limits", lambda device, dtype: UNIT)
    main = SimpleNamespace(main=True, device=torch.device("cpu"))
    for recipe, vocab in (("reward_model", 1), ("sft_math", 259)):
        found = common.build_roofline(in_context(composed(f"recipe={recipe}", f"model.path={tiny_model}"), main))  # type: ignore[arg-type]
        assert found is not None and found.job.shape.vocab == vocab, recipe


def test_one_line_shows_the_medians() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 0, "eval/accuracy": 0.5},
        {"floor/rollout": 2.0, "floor/update": 3.0, "throughput/mfu": 0.3},
        {"floor/rollout": 4.0, "floor/update": None, "throughput/mfu": 0.4, "floor/sync": 1.25},
        {"floor/rollout": 9.0, "floor/update": 5.0, "throughput/mfu": 0.5},
    ]
    assert format_roofline(rows) == "rollout 4.0x  update 4.0x (mfu 40%)  sync 1.2x"
    assert format_roofline(rows[:1]) == format_roofline([]) == ""
