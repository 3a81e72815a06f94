"""Gradients of ranks of which one has work at a time: idling.py MODEL STAGE OUT. Writes the norm of each update, whose loss depends on
log-probs, on entropies, or on both. Alone, a rank does the work of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlkit.engines.learners import PolicyLearner
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from rlkit.updates.micro_batch_fit import longest_samples
from tests.backends import deepspeed

SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # ZeRO 3 keeps small tensors whole, and here all are small
LOSSES = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5), (1.0, 0.0)]  # of a log-prob, of an entropy
MICRO_BATCHES = 3
model, stage, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
ranks = Ranks()
policy = PolicyLearner(
    model,
    torch.float32,
    backend=deepspeed(stage, ranks.device, extra=SHARDED),
    temperature=1.0,
    offline=True,
    checkpoint_every=1,
)
samples = longest_samples(10_000, 7, 9, 4)
norms = []
for number, (of_chosen, of_entropy) in enumerate(LOSSES):
    with policy.enable_grad():
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
