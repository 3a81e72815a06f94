"""Tensors that leave the device and come back to the last bit: whole storages, so that every view of them stays what it was.

A storage is copied into a pinned buffer on the host and then shrunk to nothing; coming back, it is grown again and filled. Buffers are
kept from one time to the next, since pinning memory takes longer than copying it. The same code runs on a CPU, where both sides are host
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class CpuOffload:
    """What `find` names is moved together. `keep`: tensors whose storages must not move, whoever else shares them."""

    def __init__(self, find: Callable[[], Iterable[Tensor]], keep: Callable[[], Iterable[Tensor]] = tuple, host: Any = None) -> None:
        self.find, self.keep = find, keep
        self.host = host or host_buffer
        self.buffers: dict[int, list[Tensor]] = {}  # free ones by bytes
        self._parked: list[tuple[Any, Tensor]] = []  # storage and the buffer that holds its bytes
        self._away = False

    @property
    def bytes(self) -> int:
        """How much is away."""
        return sum(len(buffer) for _, buffer in self._parked)

    def park(self) -> None:
        """Moves everything out; nothing where it is out already."""
        if self._away:
            return
        kept = {tensor.untyped_storage()._cdata for tensor in self.keep()}
        found = {t.untyped_storage()._cdata: t.untyped_storage() for t in self.find() if t.device.type != "meta"}
        storages = [s for key, s in found.items() if key not in kept and s.nbytes() > 0]
        with beside(storages, wait=True):
            for storage in storages:
                buffer = self._buffer(storage.nbytes())
                buffer.copy_(bytes_of(storage), non_blocking=True)
                self._parked.append((storage, buffer))
        for storage in storages:  # only now: the copies are done
            storage.resize_(0)
        self._away = True

    def resume(self) -> None:
        """Brings everything back; nothing where it is there."""
        for storage, buffer in self._parked:
            storage.resize_(len(buffer))
        with beside([storage for storage, _ in self._parked]):
            for storage, buffer in self._parked:
                bytes_of(storage).copy_(buffer, non_blocking=True)
        for _, buffer in self._parked:
            self.buffers.setdefault(len(buffer), []).append(buffer)
        self._parked, self._away = [], False

    def _buffer(self, size: int) -> Tensor:
        free = self.buffers.get(size)
        return free.pop() if free else self.host(size)


def host_buffer(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def bytes_of(storage: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


@contextmanager
def beside(storages: list[Any], wait: bool = False) -> Iterator[None]:
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
