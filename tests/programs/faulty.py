"""rlkit.run with a fault in the policy: faulty.py FAULT arguments...

leaves_out: from the second sync on the tied head is not sent. keeps_old: of the third sync vLLM does not load one tensor.
not_finite: the gradients of updates 2, 3 and 4 are not finite.
dropout: from the first sync on the policy forgets a tenth of what it reads, at random: the check of the model at start does not see it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlkit import run
from rlkit.engines import learners
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.vllm import VLLMEngine

fault = sys.argv[1]
weights, load, step = PolicyLearner.weights, VLLMEngine.load, PolicyLearner.step
OLD = "model.layers.1.self_attn.o_proj.weight"
steps = 0


def faulty_load(self: VLLMEngine, sent: Iterator[tuple[str, Tensor]], version: int) -> None:
    rpc = self.llm.collective_rpc

    def forgetful_rpc(method: str, kwargs: dict[str, Any]) -> object:
        tensors = kwargs["weights_iterator"]
        return rpc(method, kwargs={"weights_iterator": ((name, tensor) for name, tensor in tensors if name != OLD)})

    if fault == "leaves_out" and version > 0:
        sent = ((name, tensor) for name, tensor in sent if name != "lm_head.weight")
    if fault == "keeps_old" and version == 2:
        self.llm.collective_rpc = forgetful_rpc
    load(self, sent, version)


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
