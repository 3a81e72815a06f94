"""Updates alone, without a sampler: what settings of DeepSpeed, of the allocator and of the head give in MFU and take in memory.

Each setting runs in a process of its own: python -m tests.gpu.update MODEL NAME [--small]. Its last line is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.gpu.models import find_model
from tests.gpu.table import Measured

SETTINGS: dict[str, dict[str, Any]] = {  # what differs from rlkit's own: of DeepSpeed, of the environment; liger: whether it may be used
    "plain": {},
    "contiguous gradients": {"deepspeed": {"zero_optimization": {"contiguous_gradients": True}}},
    "no contiguous gradients": {"deepspeed": {"zero_optimization": {"contiguous_gradients": False}}},
    "timers": {"deepspeed": {"timers": {"throughput": {"enabled": True}}}},
    "expandable segments": {"environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
    "no liger": {"liger": False},
}
TOKENS, PROMPT, COMPLETION, SAMPLES = 8192, 150, 512, 8
SMALL = (128, 8, 24, 2)
UPDATES, MICRO_BATCHES = 3, 4  # the first update warms up
EACH = 55  # seconds of a setting


def check_settings(small: bool, folder: Path) -> Measured:
    """The MFU of the last update and the peak of memory of each setting; a setting that fails is named, and fails the check."""
    model = find_model("1_5b", small, folder)
    figures: dict[str, float | str] = {}
    passed = True
    for name in ("plain",) if small else SETTINGS:
        env = os.environ | SETTINGS[name].get("environment", {})
        command = [sys.executable, "-m", "tests.gpu.update", str(model), name, *(["--small"] if small else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=4 * EACH if small else EACH, check=False)
        except subprocess.TimeoutExpired:
            figures[name], passed = "took too long", False
            continue
        if done.returncode:
            figures[name], passed = f"failed: {(done.stderr.splitlines() or ['no output'])[-1][:120]}", False
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        figures[name] = f"{answer['mfu']:.1%} at {answer['gib']:.1f} GiB"
    return Measured(figures, "every setting runs; the first is rlkit's own", passed)


@contextmanager
def build_policy(model: Path, small: bool, extra: dict[str, Any]) -> Iterator[Any]:
    """A policy of a model in the dtype of its device, alone in this process."""
    import torch

    from rlkit.engines.learners import PolicyLearner
    from rlkit.runtime.ranks import Ranks
    from tests.backends import deepspeed

    ranks, dtype = Ranks(), torch.float32 if small else torch.bfloat16
    yield PolicyLearner(str(model), dtype, backend=deepspeed(1, ranks.device, extra=extra), temperature=1.0, offline=True)


def learn(policy: Any, small: bool) -> None:
    """A micro-batch, forward and backward."""
    from rlkit.updates.micro_batch_fit import longest_samples

    tokens, prompt, completion, together = SMALL if small else (TOKENS, PROMPT, COMPLETION, SAMPLES)
    samples = longest_samples(tokens, prompt, completion, together)
    with policy.enable_grad():
        policy.backward(policy.logprobs(samples, completion)[0].sum() / tokens)


def measure(model: Path, name: str, small: bool) -> dict[str, float]:
    """MFU of the last update, peak in GiB, and seconds."""
    import torch

    from rlkit.engines import liger
    from rlkit.profiling import roofline
    from rlkit.profiling.memory_peak import read_peak

    setting = SETTINGS[name]
    if not setting.get("liger", True):
        liger.supports = lambda *_: False
    seconds = 0.0
    with build_policy(model, small, setting.get("deepspeed", {})) as policy:
        for _ in range(2 if small else UPDATES):
            begun = time.perf_counter()
            for _ in range(MICRO_BATCHES):
                learn(policy, small)
            assert policy.step(1e-6).applied
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
        limits = roofline.find_device_limits(policy.device, policy.trained.dtype)
    return {"mfu": count_operations(model, small) / (seconds * limits.operations), "gib": read_peak() / 2**30, "seconds": seconds}


def count_operations(model: Path, small: bool) -> float:
    """Of an update, as publications count them."""
    from rlkit.assembly.shapes import read_shape
    from rlkit.profiling import roofline

    tokens, prompt, completion, together = SMALL if small else (TOKENS, PROMPT, COMPLETION, SAMPLES)
    whole, left = divmod(tokens, prompt + together * completion)
    requests = [(prompt, [completion] * together)] * whole + [(prompt, [completion] * (max(left - prompt, 0) // completion))]
    shape = read_shape(json.loads((model / "config.json").read_text()))
    return 3 * MICRO_BATCHES * roofline.count_nominal_flops(shape, [request for request in requests if request[1]])


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], "--small" in sys.argv)), flush=True)
    os._exit(0)  # engines leave threads behind
