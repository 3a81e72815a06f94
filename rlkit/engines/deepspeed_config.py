"""Settings of DeepSpeed: its configuration, its environment, and how a model is loaded in shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from rlkit.errors import RunFailed
from rlkit.profiling.zero_estimate import REDUCE_BUCKET, ZeroMemory, resolve_zero_stage

SHM_KERNEL = "deepspeed_shm_comm"


@dataclass(frozen=True)
class OptimizerSettings:
    """Of AdamW; max_grad_norm: the global norm to which gradients are clipped."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True)
class DeepSpeedSettings:
    """`offload_optimizer`: its state and step are on the host. `float32_gradients`: micro-batches add up in float32, whatever the dtype of
    the weights. `extra`: raw configuration, which wins section by section."""

    zero_stage: int
    optimizer: OptimizerSettings
    offload_optimizer: bool = False
    float32_gradients: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def find_stage(settings: DeepSpeedSettings) -> int:
    """The ZeRO stage that is run."""
    return resolve_zero_stage(settings.zero_stage, dist.get_world_size())


def build_zero_memory(settings: DeepSpeedSettings, dtype: torch.dtype, sizes: Collection[int] = (REDUCE_BUCKET,)) -> ZeroMemory:
    """What so many trained weights in each tensor take."""
    largest, world = max(sizes, default=0), dist.get_world_size()
    return ZeroMemory(
        sum(sizes), largest, dtype.itemsize, world, find_stage(settings), settings.float32_gradients, settings.offload_optimizer
    )


def build_config(settings: DeepSpeedSettings, dtype: torch.dtype, memory: ZeroMemory | None = None) -> dict[str, Any]:
    """DeepSpeed's own configuration; memory: of the weights that are trained, where they are known."""
    memory = memory or build_zero_memory(settings, dtype)
    if dtype not in (torch.float32, torch.bfloat16):
        raise RunFailed(f"no training in {dtype}")
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": settings.optimizer.max_grad_norm,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in every forward pass
        "zero_optimization": {
            "stage": memory.stage,
            "contiguous_gradients": memory.stage > 1,  # else ZeRO 1 copies all gradients of its part in the step
            "overlap_comm": memory.stage > 1 and memory.world > 1,
            "reduce_bucket_size": memory.bucket,  # allocated whole
            # By default a block of experts is whole or not at all, its gradients come at the end, and no pass can be tried. That is for
            # experts that are modules, which may get no token; they are one tensor now.
            "leaf_module": {"classes": []},
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    if memory.is_widened and memory.stage == 1:  # the dtype of a parameter's gradient is set where the parameter is
        config["communication_data_type"] = "fp32"
    elif memory.is_widened:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW runs on a CPU too
    for key, value in settings.extra.items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) and isinstance(config.get(key), dict) else value
    return config


@contextmanager
def shard_on_load(config: dict[str, Any]) -> Iterator[None]:
    """Inside it, under ZeRO 3, transformers loads a model layer by layer, and each rank keeps its part alone."""
    if config["zero_optimization"]["stage"] < 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(config)  # transformers and peft find it through a weak reference
    yield
    del alive


def prepare_deepspeed() -> None:
    """To be called before deepspeed is used; imports it.

    Its all-reduce through shared memory is for inference on CPUs and nothing here calls it: turned off, since a process that starts
    DeepSpeed compiles it first (a minute of a C++ compiler), and a killed build leaves a lock for which the next one waits for ever.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").addFilter(is_error)  # its import sets the level anew
    import deepspeed

    deepspeed.ops.__compatible_ops__[SHM_KERNEL] = False


def is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
