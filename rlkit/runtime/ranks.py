"""The other processes of a run: what an algorithm sees as its peers, and what the trainers agree on. Plain torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit.errors import UserError
from rlkit.metrics import Metrics, merge
from rlkit.runtime.loopback import ensure_loopback

Thing = TypeVar("Thing")
TIMEOUT = timedelta(hours=2)  # a rank may wait for another's longest rollout
PATIENCE = timedelta(minutes=2)  # with ranks that do the same at the same time


class Ranks:
    """This process among the others; alone where the environment names no others.

    A team is the ranks that share one rollout engine: they ask for the same completions, and its first rank hands them on. A crew is the
    ranks that share each row of packed samples: they cut micro-batches together (rlkit/engines/sequence_parallel.py).
    """

    def __init__(self, team_size: int = 1, crew_size: int = 1) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.world)))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", self.local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self._connect("cpu:gloo,cuda:nccl" if cuda else "gloo")
        self._meeting = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None
        self.team_size, self.teams, self.team = team_size, self.world // team_size, self.rank // team_size
        self._team = self._made(team_size, "engine.tensor_parallel", "gloo")
        self.crew_size, self.crew = crew_size, self._made(crew_size, "engine.sequence_parallel")

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

    def _made(self, size: int, key: str, backend: str | None = None) -> Any:
        """The torch group of this rank and its neighbours, `size` together; None where it would be alone. All ranks make all of them."""
        if self.world % size:
            raise UserError(f"{key}={size} does not divide the {self.world} process(es) of this run")
        if size == 1:
            return None
        firsts = range(0, self.world, size)
        made = [dist.new_group(list(range(first, first + size)), timeout=TIMEOUT, backend=backend) for first in firsts]
        return made[self.rank // size]

    @property
    def is_tp_leader(self) -> bool:
        """Whether it is the first of its team."""
        return self.rank % self.team_size == 0

    def shard(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """This team's share of what all ranks hold."""
        return things[self.team :: self.teams]

    def shared(self, thing: Thing) -> Thing:
        """The thing of the team's first rank."""
        if self._team is None:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, src=self.team * self.team_size, group=self._team)
        return things[0]

    def gather_sp(self, things: Sequence[Thing]) -> tuple[list[Thing], int]:
        """The things of all of this crew, and where this rank's begin."""
        if self.crew is None:
            return list(things), 0
        theirs: list[Any] = [None] * self.crew_size
        dist.all_gather_object(theirs, list(things), group=self.crew)
        before = theirs[: self.rank % self.crew_size]
        return [thing for part in theirs for thing in part], sum(len(part) for part in before)

    def any_of_team(self, flag: bool) -> bool:
        if self._team is None:
            return flag
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._team)
        return bool(found)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather_by_index(self, values: Tensor, index: Tensor, size: int) -> Tensor:
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

    def barrier_with_timeout(self) -> bool:
        """Whether all ranks come here in time; False where one is held by a collective that this rank has left."""
        try:
            if self._meeting is not None:
                dist.monitored_barrier(self._meeting)
        except RuntimeError:
            return False
        return True

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
