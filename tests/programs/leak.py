"""Cycles of rollout and update with one engine: leak.py MODEL OUT. Writes resident MiB and open files after each cycle, full and LoRA."""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import torch

from rlkit.data.renderer import Renderer
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.lora import LoraSettings
from rlkit.engines.placement import Colocated
from rlkit.engines.vllm import VLLMEngine
from rlkit.engines.weight_sync import WeightSync, send_adapter, send_merged
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Request, Sampling
from tests.backends import deepspeed

CYCLES = 25
model, out = sys.argv[1], Path(sys.argv[2])
ranks, me = Ranks(), psutil.Process()
rest = {"backend": deepspeed(2, ranks.device), "temperature": 1.0, "offline": True}
found: dict[str, list[tuple[float, int]]] = {}
made: VLLMEngine | None = None
for kind in ("full", "lora"):
    lora = LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=False) if kind == "lora" else None
    policy = PolicyLearner(model, torch.float32, lora=lora, **rest)
    if made is None:
        eos = Renderer(Path(model), offline=True).eos_ids
        made = VLLMEngine(model, "float32", names=policy.names, max_model_len=96, eos=eos, world=1, sleeps=False, extra={}, adapter_rank=4)
    made.version = None
    send = WeightSync(send_adapter if lora else send_merged, ranks.gather, sys.exit)
    placement = Colocated(policy, made, (), lambda name: nullcontext(), send)
    found[kind] = []
    for cycle in range(CYCLES):
        with placement.rollout():
            for i in range(32):
                made.add(Request(Key(i, cycle, 0), tuple(range(40, 44 + i % 8)), Sampling(max_tokens=32), 100 * cycle + i))
            samples = []
            while made.pending:
                samples += made.advance()
        with placement.train():
            with policy.enable_grad():
                policy.backward(policy.logprobs(samples, 32)[0].sum() / 1000)
            assert policy.step(1e-3).applied
        placement.version = cycle + 1
        gc.collect()
        found[kind].append((me.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd"))))
out.write_text(json.dumps(found))
exit_process(0)
