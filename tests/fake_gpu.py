"""A GPU in appearance: CPU tensors that are said to be on one, and the waits of the host for it, counted.

The host waits where it reads a number, where the shape of a result depends on numbers, and where it copies from memory that is not pinned.
Operations on tensors of both sides fail, as on a GPU. What DeepSpeed or vLLM do inside is not seen: they ask for the real device.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero"}  # of ATen
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
ATTRIBUTES = {Tensor.device.__get__: lambda on: GPU if on else CPU, Tensor.is_cuda.__get__: bool}  # type: ignore[attr-defined]


class FakeGPU(TorchFunctionMode):
    """Inside it tensors are on GPU where they were moved or made there, and so is what is computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []  # each a wait
        self.blocking: list[str] = []  # copies, each a wait
        self.copies = 0  # without a wait
        self._memory: dict[int, Any] = {}  # storages on the GPU, which are kept, or their addresses would be given to others
        self._pinned: dict[int, Any] = {}
        self._operations = Operations(self)

    @property
    def waits(self) -> int:
        return len(self.reads) + len(self.blocking)

    def __enter__(self) -> Self:
        self._operations.__enter__()
        super().__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._operations.__exit__(kind, error, trace)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._memory

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor, which is on the GPU from now on."""
        storage = tensor.untyped_storage()
        self._memory[storage._cdata] = storage
        return tensor

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func in ATTRIBUTES:
            return ATTRIBUTES[func](self.holds(args[0]))
        if name in ("to", "cpu", "cuda"):
            return self._move(func, name, args, kwargs)
        if name in ("tolist", "numpy") and self.holds(args[0]):
            self.reads.append(name)
        if name == "pin_memory":
            return self.pin(args[0].clone())
        pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is None:
            result = func(*args, **kwargs)
            return self.pin(result) if pinned else result
        on = torch.device(device).type == "cuda"
        result = func(*args, **kwargs | {"device": CPU})
        if on and name in ("tensor", "as_tensor"):
            self.blocking.append(name)
        return self.place(result) if on else result

    def _move(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """`to`, `cpu` or `cuda`."""
        given = [*args[1:], *kwargs.values()]
        device = {"cpu": CPU, "cuda": GPU}.get(name) or next((d for d in given if isinstance(d, torch.device | str)), None)
        here = self.holds(args[0])
        dtype = next((d for d in given if isinstance(d, torch.dtype)), None)
        result = args[0] if dtype is None else args[0].to(dtype)
        there = here if device is None else torch.device(device).type == "cuda"
        if here == there:
            return result
        result = result.clone()
        if here:
            self.reads.append(name)
            del self._memory[result.untyped_storage()._cdata]
            return result
        if kwargs.get("non_blocking") and args[0].untyped_storage()._cdata in self._pinned:
            self.copies += 1
        else:
            self.blocking.append(f"{name} of {tuple(args[0].shape)}")
        return self.place(result)


class Operations(TorchDispatchMode):
    """What runs beneath, in backward passes too."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, name = self.gpu, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        on = [t for t in tensors if gpu.holds(t)]
        off = [t for t in tensors if not gpu.holds(t) and t.dim()]
        if on and name in READS:
            gpu.reads.append(name)
        if on and name in INDEXED:
            indices = [t for t in args[1] if t is not None]
            gpu.reads += [name for t in indices if t.dtype in (torch.bool, torch.uint8)]
            gpu.blocking += [name for t in indices if not gpu.holds(t)]
        elif on and off and name != "copy_":
            raise RuntimeError(f"{name}: tensors on the GPU and on the host")
        elif on and off:
            (gpu.reads if gpu.holds(args[1]) else gpu.blocking).append(name)
            return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        inside_backward = torch._C._current_graph_task_id() != -1  # where zeros are made for outputs that no loss uses
        if (on and name not in ("_local_scalar_dense", "equal")) or (not tensors and inside_backward):
            for leaf in tree_leaves(result):
                if torch.is_tensor(leaf):
                    gpu.place(leaf)
        return result
