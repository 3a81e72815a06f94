"""vLLM and the trainer after three large updates: agreement.py MODEL OUT KINDS [TENSOR_PARALLEL].

KINDS, joined by commas: full, lora, dora (merged on the way), adapter or rsadapter (sent as such), each with a ZeRO stage: full-0,lora-3.
Writes for each the largest difference of log-probs of a fresh and of a stale sync, and what else the test asserts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.engines import weight_sync
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.lora import LoraSettings
from rlkit.engines.reference import BaseOfPolicy, ReferenceModel
from rlkit.engines.trained_model import TrainedModel
from rlkit.engines.vllm import VLLMEngine
from rlkit.engines.weight_sync import WeightSync, send_adapter, send_merged
from rlkit.errors import RunFailed
from rlkit.ops.masking import pad_rows
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Request, Sample, Sampling
from tests.backends import deepspeed

TEMPERATURE, LR = 0.7, 0.03
LOST = "model.layers.1.self_attn.o_proj.weight"
SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # ZeRO 3 keeps small tensors whole, and here all are small
weight_sync.BUCKET["cpu"] = 30_000  # bytes: several buckets
SAMPLING = Sampling(temperature=TEMPERATURE, max_tokens=24)
model, out, kinds = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(",")
tensor_parallel = int(sys.argv[4]) if len(sys.argv) > 4 else 1
ranks = Ranks(tensor_parallel)


def policy_of(kind: str, stage: int) -> PolicyLearner:
    lora = (
        None if kind == "full" else LoraSettings(rank=4, alpha=8.0, targets="all-linear", dora=kind == "dora", rslora=kind == "rsadapter")
    )
    return PolicyLearner(
        model,
        torch.float32,
        backend=deepspeed(stage, ranks.device, extra=SHARDED),
        temperature=TEMPERATURE,
        offline=True,
        lora=lora,
        four_bits=kind == "qlora",
    )


def asked(engine: VLLMEngine, count: int, seed: int) -> list[Sample]:
    for i in range(count):
        prompt = tuple(40 + (7 * i + 3 * ranks.tp_group_index + j) % 90 for j in range(3 + i % 5))
        engine.add(Request(Key(i, 0, 0), prompt, SAMPLING, seed + i))
    finished = []
    while engine.pending:
        finished += engine.advance()
    return sorted(finished, key=lambda s: s.key)


def apart(policy: PolicyLearner, samples: list[Sample]) -> float:
    """The largest difference between what sampler and trainer say of the same tokens, on any rank."""
    width = max(len(s.tokens) for s in samples)
    mine = (policy.logprobs(samples, width)[0] - pad_rows([s.rollout_logprobs for s in samples], width, 0.0)).abs().max()
    return max(ranks.gather(float(mine)))


def large_update(policy: PolicyLearner, samples: list[Sample], sign: float) -> None:
    with policy.enable_grad():
        logprobs, _ = policy.logprobs(samples, max(len(s.tokens) for s in samples))
        policy.backward(sign * logprobs.sum() / 100)
    assert policy.step(LR).applied


def first_logprobs(policy: PolicyLearner, samples: list[Sample]) -> Tensor:
    return policy.logprobs(samples, SAMPLING.max_tokens)[0]


def shown(kind: str, stage: int, engine: VLLMEngine) -> dict[str, Any]:
    policy = policy_of(kind, stage)
    found: dict[str, Any] = {"warnings": []}
    send = WeightSync(send_adapter if kind.endswith("adapter") else send_merged, ranks.gather, found["warnings"].append)
    found |= {"trained": sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in policy.backend.named.values())}
    for version in range(3):
        send(policy, engine, version)
        samples = asked(engine, 16, 1000 * version)
        if version == 0:
            found["first"] = apart(policy, samples)
            found["tokens"] = [s.tokens.tolist() for s in samples]
            begun = samples, policy.logprobs(samples, SAMPLING.max_tokens)[0]  # adapters begin as nothing
        large_update(policy, samples, 1.0 if version % 2 else -1.0)
    found["stale"] = apart(policy, asked(engine, 32, 7))
    send(policy, engine, 3)
    last = asked(engine, 32, 7)
    found["fresh"] = apart(policy, last)
    if kind == "full":
        found["stopped"] = ranks.gather(lose_shard(policy, engine, send))
    found["shards"] = sum(p.numel() == 0 for p in policy.model.parameters())
    if policy.adapters is not None:
        ours = BaseOfPolicy(policy).logprobs(begun[0], SAMPLING.max_tokens)[0]
        found["reference"] = float((ours - begun[1]).abs().max())
        found["moved"] = float((policy.logprobs(begun[0], SAMPLING.max_tokens)[0] - ours).abs().max())
    if policy.adapters is not None and kind != "qlora":
        alone = ReferenceModel(model, torch.float32, temperature=TEMPERATURE, device=ranks.device, offline=True)
        found["loaded"] = float((ours - alone.logprobs(begun[0], SAMPLING.max_tokens)[0]).abs().max())
    return found


def lose_shard(policy: PolicyLearner, engine: VLLMEngine, send: WeightSync) -> str:
    """What stops a sync of which the last rank's engine did not load one tensor, which it shares with others or not."""
    pass_on = engine._pass_on
    large_update(policy, asked(engine, 4, 9), 1.0)
    if ranks.rank == ranks.world - 1:
        engine._pass_on = lambda *own: ((name, tensor) for name, tensor in pass_on(*own) if name != LOST)
    try:
        send(policy, engine, 4)
    except RunFailed as error:
        return str(error)
    finally:
        engine._pass_on = pass_on
    return ""


def engine_of(kind: str) -> VLLMEngine:
    from rlkit.data.renderer import Renderer
    from rlkit.engines.loading import load_causal_lm

    names = TrainedModel(load_causal_lm(model, torch.float32, offline=True), model, torch.float32, None).format.names
    eos = Renderer(Path(model), offline=True).eos_ids
    rank = 4 if kind == "adapter" else None
    return VLLMEngine(
        model,
        "float32",
        names=names,
        max_model_len=96,
        eos=eos,
        world=ranks.world,
        sleeps=False,
        extra={},
        tensor_parallel=tensor_parallel,
        adapter_rank=rank,
    )


made = engine_of("adapter" if any("adapter" in word for word in kinds) else "full")
results = {}
for word in kinds:
    kind, _, stage = word.partition("-")
    made.version = None  # as after a sleep that dropped the weights
    results[word] = shown(kind, int(stage), made)
if ranks.main:
    out.write_text(json.dumps(results))
made.close()
ranks.barrier()
exit_process(0)
