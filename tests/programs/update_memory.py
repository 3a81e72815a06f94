"""What an update of a policy in bfloat16 takes: update_memory.py MODEL STAGE OUT [STEPPED]. Beside MODEL lies a folder `small`, a model of
next to no weights. Writes bytes at the peak beside what was there before it was built, and what is predicted; STEPPED: weights that the
optimizer steps at a time."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rlkit.assembly.shapes import read_shape
from rlkit.engines.learners import PolicyLearner
from rlkit.profiling import host_estimate, memory_estimate, zero_estimate
from rlkit.profiling.memory_peak import read_peak, reset_peak
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.updates.micro_batch_fit import longest_samples
from tests.backends import deepspeed

TOKENS, PROMPT, SAID = 64, 8, 8
model, zero_stage, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
if sys.argv[4:]:
    zero_estimate.OPTIMIZER_BLOCK = int(sys.argv[4])
ranks = Ranks()
rest = {"backend": deepspeed(zero_stage, ranks.device), "temperature": 1.0, "offline": True}


def policy_of(path: str) -> PolicyLearner:
    """Built and stepped once, so that libraries are there, and the optimizer's state."""
    policy = PolicyLearner(path, torch.bfloat16, **rest)
    update(policy, 1)
    return policy


def update(policy: PolicyLearner, micro_batches: int) -> None:
    samples = longest_samples(TOKENS, PROMPT, SAID, 1)
    with policy.enable_grad():
        for _ in range(micro_batches):
            policy.backward(policy.logprobs(samples, SAID)[0].sum() / 1000)
    assert policy.step(1e-3).applied


def settle() -> float:
    """Bytes now, after the C library has given back what nobody holds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak()
    return read_peak()


small = policy_of(str(Path(model).parent / "small"))
before = settle()
policy = policy_of(model)
settle()
update(policy, 3)
peak = read_peak() - before
job = memory_estimate.Job(
    shape=read_shape(json.loads((Path(model) / "config.json").read_text())),
    width=2,
    rank=None,
    world=ranks.world,
    stage=zero_estimate.resolve_zero_stage(zero_stage, ranks.world),
    tensor_parallel=1,
    tokens=TOKENS,
    completions=TOKENS // 2,
    keys=TOKENS,
    longest=PROMPT + SAID,
    rows=0,
    reference=False,
    critic=False,
    offload=False,
    checkpointing=0,
    samples=False,
)
if ranks.main:
    predicted = host_estimate.estimate_host_peaks(job)["train"] - host_estimate.LIBRARIES["none"]
    out.write_text(json.dumps({"peak": peak, "parameters": job.shape.parameters, "predicted": predicted}))
dist.barrier()
exit_process(0)
