"""A policy of 200 numbers in float64 and plain torch, and ranks that are threads: the real update on a model that rounds nothing away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlkit.engines.base import Update
from rlkit.metrics import Metrics, merge
from rlkit.ops.logprobs import build_predict_index
from rlkit.ops.masking import pad_rows
from rlkit.types import Group, Key, Sample, ScoredSample, Stop

VOCABULARY, HIDDEN = 11, 6
T = TypeVar("T")


class Model(nn.Module):
    """Causal: position t sees the mean of the embeddings up to t."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, HIDDEN, generator=random, dtype=torch.float64))
        self.inner = nn.Parameter(torch.randn(HIDDEN, HIDDEN, generator=random, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(HIDDEN, VOCABULARY, generator=random, dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        read = self.embedding[ids]  # [B, S, H]
        so_far = read.cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
        return torch.tanh(read + so_far @ self.inner) @ self.head  # [B, S, V]


class Ranks:
    """One of some threads that stand for processes."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._slots, self._barrier = rank, len(slots), slots, barrier

    def gather(self, thing: Any) -> list[Any]:
        self._slots[self.rank] = thing
        self._barrier.wait()
        things = list(self._slots)
        self._barrier.wait()
        return things

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather(values)).sum(0)

    def gather_by_index(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        return self.all_reduce_sum(torch.zeros(size, dtype=values.dtype).index_copy(0, index, values))

    def all_reduce_max(self, number: int) -> int:
        return max(self.gather(number))

    sp_size, is_tp_leader = 1, True

    def gather_sp(self, things: list[Any]) -> tuple[list[Any], int]:
        return things, 0

    def shard(self, things: list[Any]) -> list[Any]:
        return things[self.rank :: self.world]

    def any_rank(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def broadcast_tp(self, thing: T) -> T:
        return thing

    any_tp_rank = staticmethod(bool)

    def merge_metrics(self, metrics: Metrics) -> Metrics:
        return merge(self.gather(metrics))


def together(world: int, work: Callable[[Ranks], T]) -> list[T]:
    """What each of `world` ranks returns."""
    slots, answers, errors = [None] * world, [None] * world, []
    barrier = threading.Barrier(world, timeout=60)

    def one(rank: int) -> None:
        try:
            answers[rank] = work(Ranks(rank, slots, barrier))  # type: ignore[call-overload]
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return answers  # type: ignore[return-value]


class Policy:
    """Scores and learns by plain gradient descent; keeps the gradient of each update, summed over ranks."""

    def __init__(self, ranks: Ranks, seed: int = 0, padding: int = 0) -> None:
        self.model, self.ranks, self.padding = Model(seed), ranks, padding
        self.gradients: list[Tensor] = []
        self.calls: list[int] = []  # rows of each micro-batch that was learnt from, 0 for an idle one
        self._learns = False

    @contextmanager
    def enable_grad(self) -> Iterator[None]:
        self._learns = True
        yield
        self._learns = False

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        if not samples:
            return torch.zeros(0, width), torch.zeros(0, width)
        rows = [torch.cat([torch.tensor(s.prompt), s.tokens]) for s in samples]
        ids = pad_rows(rows, max(len(r) for r in rows) + self.padding, 0)
        lengths = [len(s.tokens) for s in samples]
        where = build_predict_index([i * ids.shape[1] + len(s.prompt) for i, s in enumerate(samples)], lengths)
        with torch.set_grad_enabled(self._learns):
            logs = torch.log_softmax(self.model(ids).reshape(-1, VOCABULARY)[where], -1)  # [n, V]
            chosen = logs.gather(-1, torch.cat([s.tokens for s in samples]).unsqueeze(-1)).squeeze(-1)
            place = torch.cat([torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)])
            laid = [
                torch.zeros(len(samples) * width, dtype=torch.float64).index_put((place,), x)
                for x in (chosen, -(logs.exp() * logs).sum(-1))
            ]
        if self._learns:
            self.calls.append(len(samples))
            return laid[0].view(-1, width), laid[1].view(-1, width)
        return laid[0].float().view(-1, width), laid[1].float().view(-1, width)  # signals are kept in float32

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def idle(self) -> None:
        self.calls.append(0)

    def step(self, lr: float) -> Update:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.model.parameters()]
        total = self.ranks.all_reduce_sum(torch.cat([p.flatten() for p in parts]))
        self.gradients.append(total)
        with torch.no_grad():
            for parameter, part in zip(self.model.parameters(), total.split([p.numel() for p in parts]), strict=True):
                parameter -= lr * part.view_as(parameter)
                parameter.grad = None
        return Update(True, float(total.norm()))


def episodes_of(rewards: Sequence[Sequence[float | None]], seed: int = 0) -> list[Group]:
    """Groups as of groups_of, of one to three turns of bytes each, with observations between them that do not count."""
    random = torch.Generator().manual_seed(seed)
    groups = []
    for group in groups_of(rewards, seed):
        samples = []
        for n, scored in enumerate(group.samples):
            turns = torch.randint(1, 9, (n % 3 + 1, 2), generator=random).tolist()  # tokens of a turn, and of what is answered to it
            mask = torch.tensor([by for turn, answer in turns for by in [True] * turn + [False] * answer][: -turns[-1][1]])
            tokens = torch.randint(0, 256, (len(mask),), generator=random)
            places = {"rollout_logprobs": torch.zeros(len(mask)), "versions": torch.zeros(len(mask), dtype=torch.int32)}
            samples.append(replace(scored, sample=replace(scored.sample, tokens=tokens, mask=mask, **places)))
        groups.append(replace(group, samples=tuple(samples)))
    return groups


def groups_of(rewards: Sequence[Sequence[float | None]], seed: int = 0) -> list[Group]:
    """A group for each row of rewards, of ragged random samples, with the hard cases in it: one token, no token that counts, holes."""
    random = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=random))

    groups = []
    for g, row in enumerate(rewards):
        prompt = tuple(number(0, VOCABULARY - 1) for _ in range(number(1, 5)))
        samples = []
        for n, reward in enumerate(row):
            length = 1 if n == 0 else number(1, 9)
            mask = torch.rand(length, generator=random) < (0.0 if (g, n) == (1, 1) else 0.85)
            sample = Sample(
                key=Key(g, 0, n),
                prompt=prompt,
                tokens=torch.randint(0, VOCABULARY, (length,), generator=random),
                mask=mask,
                rollout_logprobs=torch.full((length,), -2.0),
                versions=torch.zeros(length, dtype=torch.int32),
                stop=Stop.EOS,
                text="",
            )
            samples.append(ScoredSample(sample, reward, {}))
        groups.append(Group(g, tuple(samples)))
    return groups
