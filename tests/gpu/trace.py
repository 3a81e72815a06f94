"""A trace of torch's profiler: two micro-batches of an update, then 20 decode steps of the sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rlkit.types import Key, Request, Sampling
from tests.gpu.models import find_model
from tests.gpu.table import Measured
from tests.gpu.update import build_policy, learn

STEPS, ROWS = 20, 256


def check_trace(small: bool, folder: Path) -> Measured:
    """Writes trace-update.json and trace-decode.json, for chrome://tracing or Perfetto. The share of time in which the GPU works is the sum
    of its kernels' over the time from the first to the last."""
    figures: dict[str, float | str] = {}
    model = find_model("0_5b", small, folder)
    with build_policy(model, small, {}) as policy:
        learn(policy, small)  # what is compiled or allocated once
        with trace(folder / "trace-update.json", figures, "update", policy.device):
            for _ in range(2):
                learn(policy, small)
        engine = build_engine(model, small, policy)
        for i in range(4 if small else ROWS):
            engine.add(Request(Key(i, 0, 0), (40, 41, 42 + i % 50), Sampling(max_tokens=2 * STEPS), i))
        if not small:
            engine.advance()  # the prompts; transformers' generate does all in one call
        with trace(folder / "trace-decode.json", figures, "decode", policy.device):
            for _ in range(STEPS):
                engine.advance()
    return Measured(figures, "both traces are written", all((folder / f"trace-{name}.json").is_file() for name in ("update", "decode")))


def build_engine(model: Path, small: bool, policy: Any) -> Any:
    """The rollout engine with the policy's weights: vLLM, in small transformers' generate."""
    if small:
        from rlkit.engines.hf_generate import HFEngine

        engine: Any = HFEngine(str(model), torch.float32, device=policy.device, eos=frozenset(), pad=0, offline=True)
        engine.load(policy.module_weights(), 0)
        return engine
    from rlkit.engines.vllm import VLLMEngine

    extra = {"gpu_memory_utilization": 0.3}
    engine = VLLMEngine(
        str(model), "bfloat16", names=policy.names, max_model_len=512, eos=frozenset(), world=1, sleeps=False, extra=extra, gpu=True
    )
    engine.load(policy.weights(), 0)
    return engine


class trace:
    """Inside, everything is traced; afterwards the file is there, and `figures` has what took longest."""

    def __init__(self, file: Path, figures: dict[str, float | str], name: str, device: torch.device) -> None:
        self.file, self.figures, self.name, self.device = file, figures, name, device
        gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *gpu])

    def __enter__(self) -> None:
        self.profile.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.profile.__exit__(*error)
        self.profile.export_chrome_trace(str(self.file))
        self.figures[self.name] = describe_kernels(self.profile.events(), self.device.type == "cuda")


def describe_kernels(events: Any, gpu: bool) -> str:
    """The three that took the most time, with their share of it; on a GPU also the share of time in which it worked."""
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    own = [event for event in events if event.device_type == kind]
    spent: dict[str, float] = {}
    for event in own:
        spent[event.name] = spent.get(event.name, 0.0) + (event.time_range.elapsed_us() if gpu else event.self_cpu_time_total)
    total = sum(spent.values()) or 1.0
    most = sorted(spent, key=lambda name: -spent[name])[:3]
    text = ", ".join(f"{name[:40]} {spent[name] / total:.0%}" for name in most)
    if not gpu or not own:
        return text
    span = max(event.time_range.end for event in own) - min(event.time_range.start for event in own)
    return f"GPU busy {total / span:.0%}: {text}"
