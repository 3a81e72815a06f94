"""Moves tensors to the host and back to the last bit: whole storages, so that every view of them stays what it was.

A storage is copied into pinned memory on the host and then resized to zero; to come back, it is resized again and filled. Pinned memory is
allocated in blocks of one size that all storages share, one after the other: torch rounds each pinned allocation up to a power of two,
which for buffers of the storages' own sizes added a quarter (115 GB instead of 91 for 7 billion weights). Blocks are kept for the next
time, since pinning memory takes longer than copying. The same code runs on a CPU, where both sides are host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**28  # bytes, a power of two: pinned memory is what was moved, rounded up to one block


class CpuOffload:
    """Moves all tensors that `find` returns together. `keep`: tensors whose storages must not move, even where others share them.

    host: returns so many bytes of host memory; it is asked for blocks of `block` bytes alone.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[Tensor]],
        keep: Callable[[], Iterable[Tensor]] = tuple,
        host: Callable[[int], Tensor] | None = None,
        block: int = BLOCK,
    ) -> None:
        self.find, self.keep = find, keep
        self.host, self.block = host or allocate_pinned, block
        self.blocks: list[Tensor] = []
        self._moved: list[tuple[Any, int]] = []  # storages and their bytes, in the order of their bytes in the blocks
        self._away = False

    @property
    def bytes(self) -> int:
        """How much is on the host."""
        return sum(size for _, size in self._moved)

    def offload(self) -> None:
        """Moves everything out; does nothing where it is out already."""
        if self._away:
            return
        kept = {tensor.untyped_storage()._cdata for tensor in self.keep()}
        found = {t.untyped_storage()._cdata: t.untyped_storage() for t in self.find() if t.device.type != "meta"}
        storages = [s for key, s in found.items() if key not in kept and s.nbytes() > 0]
        needed = -(-sum(storage.nbytes() for storage in storages) // self.block)
        while len(self.blocks) < needed:
            self.blocks.append(self.host(self.block))
        self._moved = [(storage, storage.nbytes()) for storage in storages]
        with copy_stream(storages, wait=True):
            for on_device, on_host in self._pieces():
                on_host.copy_(on_device, non_blocking=True)
        for storage in storages:  # only now: the copies are done
            storage.resize_(0)
        self._away = True

    def reload(self) -> None:
        """Brings everything back; does nothing where it is there."""
        for storage, size in self._moved:
            storage.resize_(size)
        with copy_stream([storage for storage, _ in self._moved]):
            for on_device, on_host in self._pieces():
                on_device.copy_(on_host, non_blocking=True)
        self._moved, self._away = [], False

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The bytes of the storages beside those of the blocks that hold them; a piece ends where its storage or its block does."""
        position = 0
        for storage, size in self._moved:
            whole, end = view_bytes(storage), position + size
            while position < end:
                block, offset = divmod(position, self.block)
                length = min(end - position, self.block - offset)
                yield whole.narrow(0, size - (end - position), length), self.blocks[block].narrow(0, offset, length)
                position += length


def allocate_pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def view_bytes(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


@contextmanager
def copy_stream(storages: list[Any], wait: bool = False) -> Iterator[None]:
    """Inside, copies run on a stream of their own; afterwards the device waits for them, and with `wait` this thread too."""
    devices = {storage.device for storage in storages if storage.device.type == "cuda"}
    if not devices:
        yield
        return
    (device,) = devices
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)
    if wait:
        side.synchronize()
