"""Gradients of ranks of which one has work at a time: idling.py MODEL STAGE OUT. Writes the norm of each update, whose loss depends on
log-probs, on entropies, or on both. Alone, a rank does the work of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlkit.engines.deepspeed import DeepSpeedPolicy
from rlkit.engines.deepspeed_config import OptimizerSettings
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.updates.micro_batch_fit import longest_samples

SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # ZeRO 3 keeps small tensors whole, and here all are small
LOSSES = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5), (1.0, 0.0)]  # of a log-prob, of an entropy
MICRO_BATCHES = 3
model, stage, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
ranks = Ranks()
policy = DeepSpeedPolicy(
    model,
    torch.float32,
    zero_stage=stage,
    optimizer=OptimizerSettings(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0),
    temperature=1.0,
    device=ranks.device,
    offline=True,
    extra=SHARDED,
    recompute=1,
)
samples = longest_samples(10_000, 7, 9, 4)
norms = []
for number, (of_chosen, of_entropy) in enumerate(LOSSES):
    with policy.training():
        for i in range(MICRO_BATCHES):
            if (number + i) % ranks.world == ranks.rank:
                chosen, entropy = policy.logprobs(samples[4 * i : 4 * i + 4], 9)
                policy.backward((of_chosen * chosen + of_entropy * entropy).sum() / 100)
            else:
                policy.idle()
    norms.append(policy.step(0.0).grad_norm)
if ranks.main:
    out.write_text(json.dumps(norms))
exit_process(0)
