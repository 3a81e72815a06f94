"""rlkit.run with a fault in the policy: faulty.py FAULT arguments...

leaves_out: from the second sync on the tied head is not sent. keeps_old: from the second sync on one tensor is sent as it was at first.
not_finite: the gradients of updates 2, 3 and 4 are not finite.
dropout: from the first sync on the policy forgets a tenth of what it reads, at random: the check of the model at start does not see it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from rlkit import run
from rlkit.engines import learners
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.vllm import VLLMEngine

fault = sys.argv[1]
weights, load, step = PolicyLearner.weights, VLLMEngine.load, PolicyLearner.step
OLD = "model.layers.0.mlp.up_proj.weight"
first: dict[str, Tensor] = {}
steps = 0


def faulty_load(self: VLLMEngine, sent: Iterator[tuple[str, Tensor]], version: int) -> None:
    def changed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in sent:
            if version == 0 and name == OLD:
                first[name] = tensor.clone()
            if fault == "leaves_out" and version > 0 and name == "lm_head.weight":
                continue
            yield name, first[name] if fault == "keeps_old" and name == OLD and version > 0 else tensor

    load(self, changed(), version)


def faulty_step(self: PolicyLearner, lr: float) -> object:
    global steps
    steps += 1
    if fault == "not_finite" and 2 <= steps <= 4:
        self.backward(self.model.get_input_embeddings().weight.sum() * float("inf"))
    return step(self, lr)


class Forgetful(PolicyLearner):
    def __init__(self, *args: object, **words: object) -> None:
        super().__init__(*args, **words)
        torch.manual_seed(0)  # of the dropout: the state of a fork depends on what ran before
        self.forgets = False
        reader = self.model.get_input_embeddings()
        reader.register_forward_hook(lambda module, read, said: torch.nn.functional.dropout(said, 0.1 * self.forgets))

    def module_weights(self) -> Iterator[tuple[str, Tensor]]:
        self.forgets = True
        return super().module_weights()


if fault == "dropout":
    learners.PolicyLearner = Forgetful
VLLMEngine.load = faulty_load
PolicyLearner.step = faulty_step
run.exit_process(run.main(sys.argv[2:]))
