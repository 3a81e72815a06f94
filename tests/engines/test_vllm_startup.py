"""What vLLM raises while it starts, and what it answers after a load, in words; its own messages, and a stand-in for its engine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.engines.vllm import VLLMEngine
from rlkit.engines.vllm_startup import explain_rounding
from rlkit.errors import RunFailed, UserError


def fill_gpu() -> None:
    from vllm.v1.worker.utils import request_memory

    free = SimpleNamespace(total_memory=80 * 2**30, free_memory=10 * 2**30, device_="cuda:0")
    request_memory(free, SimpleNamespace(gpu_memory_utilization=0.9))  # type: ignore[arg-type]


def leave(memory: int) -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    _check_enough_kv_cache_memory(memory, lambda: 2**30, 4096, lambda _: 64)


def run_out(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def refuse(*_: Any) -> None:
    raise ValueError("Model architectures ['Odd'] are not supported")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (fill_gpu, r"vLLM cannot start: another process has memory of this GPU .* \(vLLM: Free memory on device cuda:0 \(10"),
        (lambda: leave(0), r"weights and activations alone: engine\.memory=sleep_and_offload leaves it the whole GPU; .*No available"),
        (lambda: leave(2**20), r"the keys and values of one sample: .*lower max_prompt_tokens or max_completion_tokens"),
        (run_out, r"does not hold weights and activations: .*set engine\.vllm\.gpu_memory_utilization lower"),
        (refuse, r"vLLM cannot serve model\.path here with these settings: Model arch.*; set engine\.rollout=hf"),
    ],
    ids=["no room", "no blocks", "short", "out of memory", "another"],
)
def test_its_errors_say_what_to_do(fault: Callable[[], None], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.LLM", lambda **_: fault())
    monkeypatch.setattr("rlkit.engines.vllm.keep_model_classes", lambda: None)
    with pytest.raises(UserError, match=words):
        VLLMEngine("here", "bfloat16", names=[], max_model_len=96, eos=frozenset(), world=1, sleeps=False, extra={}, gpu=True)


class Answering:
    """LLM and engine in one: writes down what it is asked, and answers so."""

    def __init__(self, **answers: bool) -> None:
        self.answers, self.asked = answers, list[str]()
        self.manager = SimpleNamespace(_last_mapping="of the last batch")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*_: Any, **__: Any) -> Any:
            self.asked.append(name)
            return self.answers.get(name, True)

        return answer

    def apply_model(self, function: object) -> list[bool]:
        return [True]

    def collective_rpc(self, method: Any, kwargs: Any = None) -> None:
        if callable(method):
            method(SimpleNamespace(model_runner=SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=self.manager))))
        else:
            list(kwargs["weights_iterator"])


def engine_of(**answers: bool) -> tuple[VLLMEngine, Answering]:
    engine, asked = VLLMEngine.__new__(VLLMEngine), Answering(**answers)
    engine.llm = engine.engine = asked  # type: ignore[assignment]
    engine.names, engine.version, engine._requests, engine._checksums, engine._adapter = ["w"], None, {}, {}, None
    return engine, asked


def load_adapter(engine: VLLMEngine) -> None:
    engine.load_adapter(iter([("a", torch.ones(2))]), lambda folder, tensors: None, 3)


def test_a_prefix_cache_of_older_weights_stops_the_run() -> None:
    for load in (lambda engine: engine.load(iter([("w", torch.ones(2))]), 3), load_adapter):
        engine, _ = engine_of(reset_prefix_cache=False)
        with pytest.raises(RunFailed, match="vLLM did not clear its prefix cache after a load"):
            load(engine)
        assert engine.version is None  # so that it samples nothing
        engine, _ = engine_of()
        load(engine)
        assert engine.version == 3


def test_an_adapter_is_never_skipped() -> None:
    engine, asked = engine_of()
    load_adapter(engine)
    assert asked.asked == ["remove_lora", "add_lora", "reset_prefix_cache"] and asked.manager._last_mapping is None
    engine, _ = engine_of(add_lora=False)
    with pytest.raises(RunFailed, match="did not load the adapter that it was sent"):
        load_adapter(engine)
    assert engine.version is None


def test_only_a_temperature_in_bfloat16_is_rounded_before_0_32() -> None:
    told = explain_rounding("0.26.0", torch.bfloat16, 0.7)
    assert told is not None and "vLLM 0.26.0 rounds logits to bfloat16" in told and "0.02 to 0.04 nats" in told
    for version, dtype, temperature in (
        ("0.26.0", torch.bfloat16, 1.0),
        ("0.26.0", torch.float32, 0.7),
        ("0.32.0", torch.bfloat16, 0.7),
        ("0.32.1rc1.dev3+g12", torch.bfloat16, 0.7),
        ("1.0", torch.bfloat16, 0.7),
    ):
        assert explain_rounding(version, dtype, temperature) is None
    assert explain_rounding("0.31.2", torch.bfloat16, 0.6)
