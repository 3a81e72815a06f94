"""Moves tensors to the host and back to the last bit: whole storages, so that every view of them stays what it was.

A storage is copied into a pinned buffer on the host and then resized to zero; to come back, it is resized again and filled. Buffers are
kept for the next time, since pinning memory takes longer than copying. The same code runs on a CPU, where both sides are host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class CpuOffload:
    """Moves all tensors that `find` returns together. `keep`: tensors whose storages must not move, even where others share them."""

    def __init__(self, find: Callable[[], Iterable[Tensor]], keep: Callable[[], Iterable[Tensor]] = tuple, host: Any = None) -> None:
        self.find, self.keep = find, keep
        self.host = host or allocate_pinned
        self.buffers: dict[int, list[Tensor]] = {}  # free ones by bytes
        self._moved: list[tuple[Any, Tensor]] = []  # storage and the buffer that holds its bytes
        self._away = False

    @property
    def bytes(self) -> int:
        """How much is on the host."""
        return sum(len(buffer) for _, buffer in self._moved)

    def offload(self) -> None:
        """Moves everything out; does nothing where it is out already."""
        if self._away:
            return
        kept = {tensor.untyped_storage()._cdata for tensor in self.keep()}
        found = {t.untyped_storage()._cdata: t.untyped_storage() for t in self.find() if t.device.type != "meta"}
        storages = [s for key, s in found.items() if key not in kept and s.nbytes() > 0]
        with copy_stream(storages, wait=True):
            for storage in storages:
                buffer = self._take_buffer(storage.nbytes())
                buffer.copy_(view_bytes(storage), non_blocking=True)
                self._moved.append((storage, buffer))
        for storage in storages:  # only now: the copies are done
            storage.resize_(0)
        self._away = True

    def reload(self) -> None:
        """Brings everything back; does nothing where it is there."""
        for storage, buffer in self._moved:
            storage.resize_(len(buffer))
        with copy_stream([storage for storage, _ in self._moved]):
            for storage, buffer in self._moved:
                view_bytes(storage).copy_(buffer, non_blocking=True)
        for _, buffer in self._moved:
            self.buffers.setdefault(len(buffer), []).append(buffer)
        self._moved, self._away = [], False

    def _take_buffer(self, size: int) -> Tensor:
        free = self.buffers.get(size)
        buffer: Tensor = free.pop() if free else self.host(size)
        return buffer


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
