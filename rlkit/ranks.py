"""The other processes of a run: what an algorithm sees as its peers, and what the stories agree on. Plain torch.distributed."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit.loopback import ensure_loopback
from rlkit.metrics import Metrics, merge

TIMEOUT = timedelta(hours=2)  # a rank may wait for another's longest rollout


class Ranks:
    """This process among the others; alone where the environment names no others."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.world)))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", self.local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self._connect("cpu:gloo,cuda:nccl" if cuda else "gloo")

    def _connect(self, backend: str) -> None:
        """Must come before DeepSpeed and vLLM, which find the group made and take it."""
        if self.world > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
            return
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
            os.environ.setdefault(name, value)
        ensure_loopback()
        store = dist.HashStore()  # in memory: takes no port
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def everywhere(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """values [B] of the samples at `index` [B] of the step -> [size], the values of all samples in the step's order."""
        spread = torch.zeros(size, dtype=values.dtype).index_copy(0, index, values)
        return self.sum(spread)

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def most(self, number: int) -> int:
        largest = torch.tensor([number])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def any(self, flag: bool) -> bool:
        return bool(self.most(int(flag)))

    def gather(self, thing: Any) -> list[Any]:
        """Everybody's thing, in the order of the ranks."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def merged(self, metrics: Metrics) -> Metrics:
        """Metrics over all ranks, in the order of the ranks."""
        return merge(self.gather(metrics))

    def barrier(self) -> None:
        dist.barrier()
