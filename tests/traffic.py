"""The bytes that operations move, counted eagerly: of tensors in and out of every operation that is no view."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")  # nothing is read or written


class Traffic(TorchDispatchMode):
    """Inside it `bytes` grows. An in-place operation reads and writes its tensor; of a broadcast tensor only what is stored counts."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_view(func) and func.overloadpacket.__name__ not in ALLOCATIONS:
            read = {name: value for name, value in (kwargs or {}).items() if name != "out"}
            self.bytes += sum(measure_storage(leaf) for leaf in tree_leaves((args, read, result)) if torch.is_tensor(leaf))
        return result


def is_view(operation: Any) -> bool:
    """Whether an operation returns a tensor of its argument's storage without a write."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns)


def measure_storage(tensor: Tensor) -> int:
    """Bytes of a tensor, at most those of its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
