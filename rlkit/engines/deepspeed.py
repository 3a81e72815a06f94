"""DeepSpeed as the backend of training. Only this file imports deepspeed's engine, and only it knows that DeepSpeed averages over ranks.

Traps of DeepSpeed 0.19 that are handled here: gradients are averaged over ranks, so losses are multiplied by the world size; ZeRO 0 in
float32 neither returns a gradient norm nor notices a non-finite gradient, so stage 0 runs as stage 1; ZeRO 2 holds the gradients of a
micro-batch beside their sum, so one process does better with stage 1; optimizer state exists only after a first step; after a
full-precision parameter is set, the parameter itself must be set too, or the next gradient is silently wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.engines import weight_sync
from rlkit.engines.base import FileFactory, Update
from rlkit.engines.deepspeed_config import DeepSpeedSettings, build_config, build_zero_memory, prepare_deepspeed, shard_on_load
from rlkit.engines.offload import CpuOffload
from rlkit.engines.tensor_file import TensorReader, write_tensors
from rlkit.profiling import zero_estimate

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = (  # of DeepSpeed's optimizers: masters and gradients of ZeRO 1 and 2, then of ZeRO 3
    *("single_partition_of_fp32_groups", "averaged_gradients", "all_grad_tensors"),
    *("fp32_partitioned_groups_flat", "grad_partitions_flat_buffer"),
)


class DeepSpeed:
    """Builds backends with the same settings on the same device."""

    def __init__(self, settings: DeepSpeedSettings, device: torch.device) -> None:
        prepare_deepspeed()
        self.settings, self.device = settings, device

    def shard_on_load(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        return shard_on_load(build_config(self.settings, dtype))

    def build(self, module: nn.Module, dtype: torch.dtype) -> DeepSpeedBackend:
        return DeepSpeedBackend(module, dtype, self.settings, self.device)


class DeepSpeedBackend:
    """A module under DeepSpeed, trained by AdamW with float32 master weights. Trains the parameters that require a gradient."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, settings: DeepSpeedSettings, device: torch.device) -> None:
        import deepspeed

        self.device = device
        self.named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        sizes = {name: self.count_elements(parameter) for name, parameter in self.named.items()}
        self.memory = build_zero_memory(settings, dtype, sizes.values())
        self.stage = self.memory.stage
        if self.memory.is_widened and self.stage == 1:
            for parameter in self.named.values():
                parameter.grad_dtype = torch.float32
        optimizer = settings.optimizer
        adam = torch.optim.AdamW(
            # one group after the other: DeepSpeed copies the gradients of a group, in float32 too
            [
                {"params": [self.named[name] for name in group]}
                for group in weight_sync.split_into_buckets(sizes, zero_estimate.OPTIMIZER_BLOCK)
            ],
            lr=0.0,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,  # one kernel, and nothing the size of the weights beside them
        )
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=module, optimizer=adam, config=build_config(settings, dtype, self.memory), dist_init_required=False
        )
        self._offload = CpuOffload(
            self.list_training_state, keep=lambda: find_tensors([[p, getattr(p, "ds_tensor", None)] for p in module.parameters()])
        )

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.engine
        return module

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * dist.get_world_size())

    def try_backward(self, forward: Callable[[nn.Module], Tensor]) -> None:
        """As of Backend. It goes around DeepSpeed's engine, which cannot be left in the middle of a backward pass; the gradient of each
        parameter is computed as there, and dropped where DeepSpeed would reduce it."""
        trained = list(self.named.values())
        hooks = [parameter.register_hook(drop_gradient) for parameter in trained]
        try:
            torch.autograd.grad(forward(self.engine.module).sum() * 0.0, trained, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
            if self.stage == 3:
                self.engine.empty_partition_cache()

    def reserve_update(self) -> list[Tensor]:
        """As of Backend. In an update of several micro-batches, of which the trial is a later one."""
        memory = self.memory
        later = 0.0 if self._optimizer_states() or memory.offload else memory.moments
        if self.stage < 3:  # ZeRO 3 has allocated its buffer and its bucket
            later += memory.gradients + memory.reduction
        return [torch.empty(int(later), dtype=torch.uint8, device=self.device)]

    def step(self, lr: float) -> Update:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        return Update(applied=bool(self.engine.was_step_applied()), grad_norm=norm)

    def offload(self) -> None:
        if self.device.type == "cuda":
            self._offload.offload()

    def reload(self) -> None:
        if self.device.type == "cuda":
            self._offload.reload()

    def list_training_state(self) -> Iterator[Tensor]:
        """Masters, moments and gradients, where they are on the device. DeepSpeed's own offloading pins its buffers anew each time, and
        cannot do ZeRO 3 with this optimizer."""
        masters = [getattr(self.optimizer, name, None) for name in STATE]
        moments = [list(state.values()) for state in self._optimizer_states()]
        gradients = [p.grad for p in self.named.values()]
        yield from (t for t in find_tensors([masters, moments, gradients]) if t.device.type == self.device.type and t.numel() > 1)

    def save(self, files: FileFactory, name: str) -> None:
        self.reload()  # a checkpoint reads what a rollout has moved away
        keys = ("weight", *MOMENTS) if self._has_moments() else ("weight",)
        if dist.get_rank() == 0:
            shapes = {f"{key}/{of}": getattr(p, "ds_shape", p.shape) for of, p in self.named.items() for key in keys}
            with files.create(f"{name}.safetensors") as file:
                write_tensors(file, shapes, self._gather_state(keys))
            steps = {"step": self._optimizer_step()} if len(keys) > 1 else {}
            with files.create(f"{name}.json") as file:
                file.write(json.dumps(steps).encode())
        else:
            for _ in self._gather_state(keys):
                pass
        dist.barrier()

    def _gather_state(self, keys: Sequence[str]) -> Iterator[Tensor]:
        """The float32 weight and moments of each parameter, whole on every rank; a collective call for each."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for parameter in self.named.values():
            for key in keys:
                yield safe_get_full_fp32_param(parameter) if key == "weight" else safe_get_full_optimizer_state(parameter, key)

    def load(self, folder: Path, name: str, idle: Callable[[], None]) -> None:
        self.reload()
        steps = json.loads((folder / f"{name}.json").read_text())
        if steps:
            self._create_optimizer_state(idle)
        with (folder / f"{name}.safetensors").open("rb") as file:
            saved = TensorReader(file)
            for parameter_name, parameter in self.named.items():
                self._restore(parameter, saved, parameter_name, moments=bool(steps))
        if steps:
            self._set_optimizer_step(steps["step"])
        dist.barrier()

    def _restore(self, parameter: Any, saved: TensorReader, name: str, moments: bool) -> None:
        """One parameter; one tensor of it is in memory at a time."""
        for key in MOMENTS if moments else ():
            self._set_state(parameter, saved.read(f"{key}/{name}"), key)
        weight = saved.read(f"weight/{name}")
        self._set_state(parameter, weight, "weight")
        with self._gather([parameter], modifier_rank=0), torch.no_grad():
            if not self.is_sharded(parameter) or dist.get_rank() == 0:
                parameter.data.copy_(weight)

    def _set_state(self, parameter: Any, value: Tensor, key: str) -> None:
        """Sets the float32 weight or a moment. A sharded one by this rank's part, the last of which ends in padding: DeepSpeed sets a whole
        one only where the number of ranks divides its size."""
        from deepspeed import utils

        if not self.is_sharded(parameter):
            fp32, moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
        else:
            fp32, moment = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
            size = parameter.ds_tensor.numel()
            part = value.flatten()[size * dist.get_rank() :][:size]
            value = nn.functional.pad(part, (0, size - part.numel()))
        if key == "weight":
            fp32(parameter, value)
        else:
            moment(parameter, value, key)

    def _optimizer_states(self) -> list[dict[str, Any]]:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return [state for state in inner.state.values() if state]

    def _has_moments(self) -> bool:
        flag = torch.tensor([float(bool(self._optimizer_states()))], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _optimizer_step(self) -> float:
        steps = [float(s["step"]) for s in self._optimizer_states()]
        return max(steps, default=0.0)

    def _set_optimizer_step(self, step: float) -> None:
        for state in self._optimizer_states():
            state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step

    def _create_optimizer_state(self, idle: Callable[[], None]) -> None:
        """Optimizer state exists only after a step: takes one with zero gradients and no learning rate."""
        if not self._has_moments():
            idle()
            self.step(0.0)

    def gather(self, tensors: Sequence[Any]) -> AbstractContextManager[Any]:
        return self._gather(tensors)

    def _gather(self, tensors: Sequence[Any], modifier_rank: int | None = None) -> AbstractContextManager[Any]:
        """With `modifier_rank`, what that rank writes inside is sent to the others."""
        import deepspeed

        sharded = [tensor for tensor in tensors if self.is_sharded(tensor)]
        if not sharded:
            return nullcontext()
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded, modifier_rank=modifier_rank)
        return gathered

    @staticmethod
    def is_sharded(tensor: Any) -> bool:
        return hasattr(tensor, "ds_id")

    @staticmethod
    def count_elements(tensor: Any) -> int:
        return int(getattr(tensor, "ds_numel", tensor.numel()))


def find_tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and dictionaries, and their gradients."""
    if torch.is_tensor(values):
        yield values
        if values.is_leaf and values.grad is not None:
            yield values.grad
    elif isinstance(values, Mapping):
        yield from find_tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from find_tensors(value)


def drop_gradient(gradient: Tensor) -> Tensor:
    """One zero in its shape, which takes no memory."""
    return gradient.new_zeros(()).expand(gradient.shape)
