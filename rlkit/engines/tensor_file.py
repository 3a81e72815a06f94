"""Writes and reads a safetensors file tensor by tensor. The library's own writer takes all tensors at once and a path: its bytes cannot be
hashed. Its reader maps the file, so that everything that was read counts as memory of the process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedReader
from math import prod

import torch
from torch import Tensor

from rlkit.engines.base import Writable

ALIGNMENT = 8  # bytes, of the header


def write_tensors(file: Writable, shapes: Mapping[str, Sequence[int]], tensors: Iterable[Tensor]) -> None:
    """Writes float32 tensors, one for each shape in its order; each is on the CPU only while it is written."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": [*shape], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        if tensor.shape != torch.Size(shape):
            raise ValueError(f"{name} is {[*tensor.shape]}, not {[*shape]}")
        if tensor.numel():
            file.write(tensor.detach().to("cpu", torch.float32).contiguous().flatten().numpy().data.cast("B"))


class TensorReader:
    """A file of `write_tensors`, open for reading."""

    def __init__(self, file: BufferedReader) -> None:
        size = int.from_bytes(file.read(8), "little")
        self._file, self._start, self._header = file, 8 + size, json.loads(file.read(size))

    def read(self, name: str) -> Tensor:
        """A float32 tensor on the CPU. Raises KeyError where there is none of this name, EOFError where the file ends before it does."""
        start, end = self._header[name]["data_offsets"]
        tensor = torch.empty(self._header[name]["shape"], dtype=torch.float32)
        self._file.seek(self._start + start)
        if tensor.numel() and self._file.readinto(tensor.flatten().numpy().data.cast("B")) != end - start:
            raise EOFError(f"the file ends inside {name}")
        return tensor
