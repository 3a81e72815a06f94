"""What an update costs that can be counted without a GPU: bytes that the head moves, waits of the host, operations of packing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.algorithms import State
from rlkit.engines import packing
from rlkit.engines.heads import TokenScorer, TokenValuer, compute_logprobs, compute_values
from rlkit.metrics import metric_values
from rlkit.ops import logprobs
from rlkit.ops.masking import count_units
from rlkit.types import Sample
from rlkit.updates.collate import collate
from tests.algorithms import tiny
from tests.algorithms.shipped import algorithm
from tests.algorithms.test_grpo import REWARDS, learning
from tests.engines.test_packing import CPU, apart, loss_of, model_of, samples_of
from tests.fake_gpu import GPU, FakeGPU
from tests.traffic import Traffic

FORWARD, BACKWARD = 30, 40  # bytes a logit in float32
WAITS = 3  # of a micro-batch


def test_bytes_a_logit_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """In eight blocks, so wide that what is one number a token does not count."""
    monkeypatch.setattr(logprobs, "BLOCK", 2**19)
    tokens, vocabulary, random = 512, 8192, torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=random, requires_grad=True) for n in (tokens, vocabulary))
    chosen = torch.randint(vocabulary, (tokens,), generator=random)
    used = logprobs.UsedOutputs()
    with Traffic() as forward:
        found, _ = logprobs.logprobs_from_hidden(hidden, weight, None, chosen, 1.0, None, used)
    used.entropy = False
    with Traffic() as backward:
        found.sum().backward()
    moved = [traffic.bytes / (tokens * vocabulary) for traffic in (forward, backward)]
    assert 4 < moved[0] <= FORWARD and 4 < moved[1] <= BACKWARD, moved


class Learner:
    """A scorer on a device, and plain torch as its backend."""

    def __init__(self, gpu: FakeGPU, values: bool = False) -> None:
        model = model_of("qwen3", torch.float32)
        self.module: Any = TokenValuer(model) if values else TokenScorer(model)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            gpu.place(tensor)
        self._learns, self.passes = False, 0

    @contextmanager
    def enable_grad(self) -> Iterator[None]:
        self._learns = True
        yield
        self._learns = False

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        self.passes += self._learns
        with torch.set_grad_enabled(self._learns):
            return compute_logprobs(self.module, samples, width, 1.0, GPU)

    def values(self, samples: Sequence[Sample], width: int) -> Tensor:
        with torch.set_grad_enabled(self._learns):
            return compute_values(self.module, samples, width, GPU)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.mark.parametrize(("name", "keys"), [("grpo", {"kl_coef": 0.1}), ("ppo", {"entropy_coef": 0.1})])
def test_the_host_does_not_wait_in_a_micro_batch(name: str, keys: dict[str, Any]) -> None:
    """All metrics of a minibatch are read at once, and what goes to the GPU goes in one copy from pinned memory a pass and one a loss."""
    keys, seen = algorithm(name, **keys), {}
    for budget in (10_000, 40):
        with FakeGPU() as gpu:
            ranks: Any = tiny.Ranks(0, [None], threading.Barrier(1))
            policy, reference, critic = Learner(gpu), Learner(gpu), Learner(gpu, values=True) if name == "ppo" else None
            updater = learning(keys, ranks, 1, policy=policy, reference=reference, critic=critic, tokens_per_micro_batch=budget)
            _, batch = collate(tiny.groups_of(REWARDS), ranks, 1, 0)
            signals, _ = updater.observe(batch)
            credit, _, _ = keys.compute_advantages(batch, signals, State(), ranks)
            reads, blocking, copies = len(gpu.reads), len(gpu.blocking), gpu.copies
            metrics = updater.accumulate_gradient(batch, signals, credit, list(range(24)), count_units(batch.mask))
            assert metrics is not None and gpu.reads[reads:] == ["tolist"] and gpu.blocking[blocking:] == []
            assert gpu.copies - copies == policy.passes * (4 if critic else 2) and len(gpu.reads) - reads <= WAITS * policy.passes
            seen[policy.passes] = metric_values(metrics)
    assert len(seen) == 2 and min(seen) == 1
    one, many = seen.values()
    assert one == pytest.approx(many, rel=1e-5, abs=1e-6)


def count_operations(samples: list[Sample]) -> int:
    """Calls into torch's operations."""
    count = 0

    class Counter(Traffic):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            count += 1
            return func(*args, **(kwargs or {}))

    with Counter():
        packing.pack_samples(samples, 9, CPU)
    return count


def test_packing_takes_as_many_operations_for_many_samples() -> None:
    few = samples_of()
    many = [replace(s, key=s.key._replace(prompt=10 * k + s.key.prompt)) for k in range(20) for s in few]
    assert packing.pack_samples(many, 9, CPU).ids.shape[1] == 20 * packing.pack_samples(few, 9, CPU).ids.shape[1]
    assert count_operations(many) == count_operations(few) < 100


def test_only_tokens_that_count_go_through_the_head_and_what_predicts_nothing_through_no_layer() -> None:
    """Tokens 1, 3 and 4 of 7 do not count, nor does any of the last sample: the same loss and gradient from fewer rows."""
    whole, masks = samples_of(), {0: [0, 0, 0, 1, 0], 1: [1, 0, 1, 0, 0, 1, 1, 0, 0], 2: [1], 4: [0] * 7}
    masked = [replace(s, mask=torch.tensor(masks.get(i, []), dtype=torch.bool)) for i, s in enumerate(whole)]
    counts = torch.zeros(5, 9, dtype=torch.bool)
    for i, mask in masks.items():
        counts[i, : len(mask)] = torch.tensor(mask, dtype=torch.bool)
    found = []
    for samples in (whole, masked):
        model = model_of("qwen3")
        layer_rows, head_rows = list[int](), list[int]()
        scorer = TokenScorer(model)
        model.model.layers[0].mlp.register_forward_pre_hook(lambda _, given, rows=layer_rows: rows.append(given[0].shape[1]))
        model.lm_head.register_forward_pre_hook(lambda _, given, rows=head_rows: rows.append(len(given[0])))
        grids = compute_logprobs(scorer, samples, 9, 1.0, CPU)
        loss_of(*(grid[counts] for grid in grids)).backward()
        found.append((layer_rows, head_rows, [grid[counts] for grid in grids], [p.grad for p in model.parameters()]))
    (all_layers, all_head, wanted, gradient), (few_layers, few_head, grids, other) = found
    assert all_layers == [3 + 4 + 1 + 8 + 5 + 2 + 4 + 6] and all_head == [5 + 9 + 1 + 7]
    assert few_layers == [3 + 3 + 1 + 6 + 5 + 2 + 4] and few_head == [1 + 4 + 1]
    assert apart(wanted, grids) < 1e-12 and apart(gradient, other) < 1e-12
