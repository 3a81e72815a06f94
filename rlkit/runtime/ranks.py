"""The processes of a run and their collectives, with plain torch.distributed. An algorithm sees `Ranks` as its `Peers`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit.errors import UserError
from rlkit.metrics import Metrics, merge
from rlkit.runtime.gpu_setup import check_own_gpus, choose_device
from rlkit.runtime.loopback import ensure_loopback

Item = TypeVar("Item")
TIMEOUT = timedelta(hours=2)  # a rank may wait for the longest rollout of another rank
BARRIER_TIMEOUT = timedelta(minutes=2)  # of ranks that do the same work at the same time


class Ranks:
    """This process among all processes of the run. Without RANK and WORLD_SIZE in the environment it is the only one.

    The ranks of a tensor-parallel group share one rollout engine: they send it the same requests, and the first rank of the group (the
    leader) passes results on. The ranks of a sequence-parallel group share each packed row (rlkit/engines/sequence_parallel.py).
    Raises UserError where a group size does not divide the number of ranks, and where a rank has no GPU of its own.
    """

    def __init__(self, tp_size: int = 1, sp_size: int = 1) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.world)))
        self.device = choose_device(self.local_rank)
        cuda = self.device.type == "cuda"
        self._connect("cpu:gloo,cuda:nccl" if cuda else "gloo")
        if cuda and self.world > 1:
            check_own_gpus(self.gather((socket.gethostname(), str(torch.cuda.get_device_properties(self.device).uuid))))
        self._barrier_group = dist.new_group(backend="gloo", timeout=BARRIER_TIMEOUT) if self.world > 1 else None
        self.tp_size, self.tp_group_count, self.tp_group_index = tp_size, self.world // tp_size, self.rank // tp_size
        self._tp_group = self._build_group(tp_size, "engine.tensor_parallel", "gloo")
        self.sp_size, self.sp_group = sp_size, self._build_group(sp_size, "engine.sequence_parallel")

    def _connect(self, backend: str) -> None:
        """Initialises torch.distributed. It must run before DeepSpeed and vLLM, which then use the same process group."""
        if self.world > 1:
            dist.init_process_group(backend, timeout=TIMEOUT)
            return
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
            os.environ.setdefault(name, value)
        ensure_loopback()
        store = dist.HashStore()  # type: ignore[attr-defined]  # in memory: it needs no port
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)

    def _build_group(self, size: int, key: str, backend: str | None = None) -> Any:
        """The process group of this rank and its neighbours, `size` ranks in all; None if size is 1. All ranks create all groups."""
        if self.world % size:
            raise UserError(f"{key}={size} does not divide the {self.world} process(es) of this run")
        if size == 1:
            return None
        starts = range(0, self.world, size)
        groups = [dist.new_group(list(range(start, start + size)), timeout=TIMEOUT, backend=backend) for start in starts]
        return groups[self.rank // size]

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_tp_leader(self) -> bool:
        """Whether this is the first rank of its tensor-parallel group."""
        return self.rank % self.tp_size == 0

    # -- a tensor-parallel group --

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of `items`, the same list on all ranks, that belongs to this tensor-parallel group."""
        return items[self.tp_group_index :: self.tp_group_count]

    def broadcast_tp(self, item: Item) -> Item:
        """The item of the group's first rank, on all ranks of the group."""
        if self._tp_group is None:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=self.tp_group_index * self.tp_size, group=self._tp_group)
        return items[0]

    def any_tp_rank(self, flag: bool) -> bool:
        """Whether the flag is true on any rank of the group."""
        if self._tp_group is None:
            return flag
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._tp_group)
        return bool(found)

    # -- a sequence-parallel group --

    def gather_sp(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """The items of all ranks of the group in one list, and the index at which those of this rank start."""
        if self.sp_group is None:
            return list(items), 0
        parts: list[Any] = [None] * self.sp_size
        dist.all_gather_object(parts, list(items), group=self.sp_group)
        before = parts[: self.rank % self.sp_size]
        return [item for part in parts for item in part], sum(len(part) for part in before)

    # -- all ranks --

    def gather_by_index(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        """values [B] of the samples at `index` [B] of the step -> [size], the values of all samples in the step's order."""
        scattered = torch.zeros(size, dtype=values.dtype).index_copy(0, index, values)
        return self.all_reduce_sum(scattered)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, a new tensor of the same shape."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, number: int) -> int:
        """The largest number of all ranks."""
        largest = torch.tensor([number])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        return bool(self.all_reduce_max(int(flag)))

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks, in the order of the ranks."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def merge_metrics(self, metrics: Metrics) -> Metrics:
        """The metrics of all ranks, merged in the order of the ranks."""
        return merge(self.gather(metrics))

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        dist.barrier()

    def barrier_with_timeout(self) -> bool:
        """Whether all ranks arrive in time. False where a rank waits in a collective operation that this rank has left."""
        try:
            if self._barrier_group is not None:
                dist.monitored_barrier(self._barrier_group)
        except RuntimeError:
            return False
        return True
