"""DeepSpeed: the policy being trained. The only file that imports deepspeed, and the only one that knows that it averages over ranks.

Traps this file knows (DeepSpeed 0.19): gradients are averaged over ranks, so losses are multiplied by the world size; ZeRO 0 in fp32
neither reports a gradient norm nor notices a non-finite one, so stage 0 runs as stage 1; ZeRO 2 holds the gradients of a micro-batch
beside their sum, so that one process does better with stage 1; optimizer state exists only after a first step; after a full-precision
parameter is set, the parameter itself must be set too, or the next gradient is silently wrong.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.engines import hf, weight_sync
from rlkit.engines.base import Update
from rlkit.engines.deepspeed_config import OptimizerSettings, config, in_parts, set_environment
from rlkit.engines.lora import LoraSettings
from rlkit.engines.offload import CpuOffload
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.engines.trained_model import TrainedModel
from rlkit.profiling import memory_estimate
from rlkit.types import Sample

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = (  # of DeepSpeed's optimizers: masters and gradients of ZeRO 1 and 2, then of ZeRO 3
    *("single_partition_of_fp32_groups", "averaged_gradients", "all_grad_tensors"),
    *("fp32_partitioned_groups_flat", "grad_partitions_flat_buffer"),
)


class Learner(ABC):
    """A module under DeepSpeed, trained by AdamW with fp32 master weights; `module` runs on laid-out samples (engines/hf.py)."""

    file: str  # of its state in a checkpoint

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        *,
        zero_stage: int,
        optimizer: OptimizerSettings,
        device: torch.device,
        extra: Mapping[str, Any],
    ) -> None:
        import deepspeed

        self.device = device
        self.named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        sizes = {name: weight_sync.elements(parameter) for name, parameter in self.named.items()}
        adam = torch.optim.AdamW(
            # stepped one after the other: DeepSpeed copies the gradients of a group, in float32 too
            [{"params": [self.named[name] for name in group]} for group in weight_sync.buckets(sizes, memory_estimate.OPTIMIZER_BLOCK)],
            lr=0.0,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,  # one kernel, and nothing the size of the weights beside them
        )
        with redirect_stdout(StringIO()):  # what it built
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=module,
                optimizer=adam,
                config=config(zero_stage, dtype, optimizer, extra, sum(sizes.values())),
                dist_init_required=False,
            )
        self.stage = memory_estimate.resolve_zero_stage(zero_stage, dist.get_world_size())
        self._keep = False
        self.parking = CpuOffload(
            self.training_state, keep=lambda: tensors_in([[p, getattr(p, "ds_tensor", None)] for p in module.parameters()])
        )

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside it outputs keep what a gradient needs."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False

    @abstractmethod
    def said(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """All that the module, under DeepSpeed or not, says of samples: what a loss can depend on."""

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * dist.get_world_size())

    def idle(self) -> None:
        self.engine.backward(self.said(self.engine, []).sum() * 0.0)

    def trial(self, samples: Sequence[Sample]) -> None:
        """A forward and a backward pass with zero weights that no gradient comes of. Around DeepSpeed's engine, which does not stand being
        left in the middle of a backward pass; the one parameter whose gradient is asked for is the first, at the end of that pass."""
        first = next(iter(self.named.values()))
        try:
            torch.autograd.grad(self.said(self.engine.module, samples).sum() * 0.0, first, allow_unused=True)
        finally:
            if self.stage == 3:
                self.engine.empty_partition_cache()

    def step(self, lr: float) -> Update:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        return Update(applied=bool(self.engine.was_step_applied()), grad_norm=norm)

    def park(self) -> None:
        if self.device.type == "cuda":
            self.parking.park()

    def resume(self) -> None:
        if self.device.type == "cuda":
            self.parking.resume()

    def training_state(self) -> Iterator[Tensor]:
        """Masters, moments and gradients, where they are on the device. DeepSpeed's own offloading pins its buffers anew each time, and
        cannot do ZeRO 3 with this optimizer."""
        held = [getattr(self.optimizer, name, None) for name in STATE]
        moments = [list(state.values()) for state in self._states()]
        gradients = [p.grad for p in self.named.values()]
        yield from (t for t in tensors_in([held, moments, gradients]) if t.device.type == self.device.type and t.numel() > 1)

    def save(self, folder: Path) -> None:
        self.resume()  # a checkpoint reads what a rollout parks
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        steps: dict[str, float] = {}
        for name, parameter in self.named.items():
            full = {"weight": safe_get_full_fp32_param(parameter)}
            if self._has_moments():
                full |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if dist.get_rank() == 0:
                tensors |= {f"{key}/{name}": tensor.detach().cpu().clone() for key, tensor in full.items()}
        if self._has_moments():
            steps["step"] = self._optimizer_step()
        if dist.get_rank() == 0:
            save_file(tensors, folder / f"{self.file}.safetensors")
            (folder / f"{self.file}.json").write_text(json.dumps(steps))
        dist.barrier()

    def load(self, folder: Path) -> None:
        from safetensors import safe_open

        self.resume()
        steps = json.loads((folder / f"{self.file}.json").read_text())
        if steps:
            self._first_step()
        with safe_open(folder / f"{self.file}.safetensors", framework="pt") as stored:
            for name, parameter in self.named.items():
                self._restore(parameter, stored, name, moments=bool(steps))
        if steps:
            self._set_optimizer_step(steps["step"])
        dist.barrier()

    def _restore(self, parameter: Any, stored: Any, name: str, moments: bool) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        weight = stored.get_tensor(f"weight/{name}")
        safe_set_full_fp32_param(parameter, weight)
        if moments:
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, stored.get_tensor(f"{key}/{name}"), key)
        with self._gathered([parameter], modifier_rank=0), torch.no_grad():
            if not hasattr(parameter, "ds_id") or dist.get_rank() == 0:
                parameter.data.copy_(weight)

    def _states(self) -> list[dict[str, Any]]:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return [state for state in inner.state.values() if state]

    def _has_moments(self) -> bool:
        flag = torch.tensor([float(bool(self._states()))], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _optimizer_step(self) -> float:
        steps = [float(s["step"]) for s in self._states()]
        return max(steps, default=0.0)

    def _set_optimizer_step(self, step: float) -> None:
        for state in self._states():
            state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step

    def _first_step(self) -> None:
        """Optimizer state exists only after a step: make one with zero gradients and no learning rate."""
        if not self._has_moments():
            self.idle()
            self.step(0.0)

    def _gathered(self, parameters: list[Any], modifier_rank: int | None = None) -> Any:
        import deepspeed

        sharded = [p for p in parameters if hasattr(p, "ds_id")]
        return deepspeed.zero.GatheredParameters(sharded, modifier_rank=modifier_rank, enabled=bool(sharded))


class DeepSpeedPolicy(Learner):
    """The policy: scores, learns, and is the source of the rollout engine's weights. With `lora` only adapters are trained."""

    file = "policy"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        zero_stage: int,
        optimizer: OptimizerSettings,
        temperature: float,
        device: torch.device,
        offline: bool,
        extra: Mapping[str, Any],
        recompute: int = 0,
        lora: LoraSettings | None = None,
        crew: SequenceParallelGroup | None = None,
        four_bits: bool = False,
    ) -> None:
        set_environment()
        self.temperature, self.crew = temperature, crew
        with nullcontext() if four_bits else in_parts(config(zero_stage, dtype, optimizer, extra)):  # 4 bits are cut later, by DeepSpeed
            model = hf.load_model(path, dtype, offline=offline, recompute=recompute, four_bits=four_bits)
            self.held = TrainedModel(model, path, dtype, lora)
        self.model, self.names, self.adapters = model, self.held.names, self.held.adapters
        scorer = hf.TokenScorer(model, crew)
        super().__init__(scorer, dtype, zero_stage=zero_stage, optimizer=optimizer, device=device, extra=extra)

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        with hf.no_gradient(self._keep):
            return hf.score(self.engine, samples, width, self.temperature, self.device, self.crew)

    def said(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        return torch.cat(hf.score(module, samples, longest(samples), self.temperature, self.device, self.crew))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint tensor by tensor, adapters merged into it; sharded tensors are gathered in buckets."""
        return self._stream(*self.held.merged())

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint as it was before training, where only adapters are trained."""
        return self._stream(*self.held.base())

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The adapters' tensors by the names of peft's files."""
        return self._stream(*self.held.own())

    def parts_sent(self) -> Iterator[tuple[str, Tensor]]:
        """All that a rollout engine gets that takes adapters as such."""
        yield from self.base_weights()
        yield from self.adapter_weights()

    def write_adapter(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self.held.write(folder, tensors, adapter=True)

    def _stream(self, parts: Mapping[str, Sequence[Tensor]], whole: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        return weight_sync.stream(parts, self._gathered, whole, weight_sync.BUCKET[self.device.type])

    def export(self, folder: Path, adapter: bool = False) -> None:
        """A Hugging Face folder of the model with its adapters merged, or a peft folder of the adapters alone."""
        state: dict[str, Tensor] = {}
        tied = self.held.tied()
        for name, tensor in self.adapter_weights() if adapter else self.weights():  # on every rank: sharded weights are gathered on all
            if dist.get_rank() == 0 and name not in tied:
                state[name] = tensor.cpu().clone()
        if dist.get_rank() == 0:
            self.held.write(folder, state, adapter)
        dist.barrier()


class DeepSpeedCritic(Learner):
    """The critic: the policy's architecture and first weights, with a value head and an optimizer of its own."""

    file = "critic"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        zero_stage: int,
        optimizer: OptimizerSettings,
        device: torch.device,
        offline: bool,
        extra: Mapping[str, Any],
        recompute: int = 0,
        crew: SequenceParallelGroup | None = None,
    ) -> None:
        set_environment()
        self.crew = crew
        with in_parts(config(zero_stage, dtype, optimizer, extra)):
            valuer = hf.TokenValuer(hf.load_model(path, dtype, offline=offline, recompute=recompute), crew)
        super().__init__(valuer, dtype, zero_stage=zero_stage, optimizer=optimizer, device=device, extra=extra)

    def values(self, samples: Sequence[Sample], width: int) -> Tensor:
        with hf.no_gradient(self._keep):
            return hf.value(self.engine, samples, width, self.device, self.crew)

    def said(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        return hf.value(module, samples, longest(samples), self.device, self.crew)


def longest(samples: Sequence[Sample]) -> int:
    return max((len(s.tokens) for s in samples), default=0)


def tensors_in(things: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and dictionaries, gradients of theirs too."""
    if torch.is_tensor(things):
        yield things
        if things.is_leaf and things.grad is not None:
            yield things.grad
    elif isinstance(things, Mapping):
        yield from tensors_in(list(things.values()))
    elif isinstance(things, list | tuple):
        for thing in things:
            yield from tensors_in(thing)
