"""How DeepSpeed is set up: its configuration, its environment, and how a model is loaded in parts."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlkit.errors import RunFailed
from rlkit.profiling import memory_estimate


@dataclass(frozen=True)
class OptimizerSettings:
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float
    offload: bool = False  # state and step on the host


def config(
    zero_stage: int,
    dtype: torch.dtype,
    optimizer: OptimizerSettings,
    extra: Mapping[str, Any],
    trained: int = memory_estimate.REDUCE_BUCKET,
) -> dict[str, Any]:
    """DeepSpeed's own configuration, of so many trained weights; what `extra` says wins, section by section."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise RunFailed(f"no training in {dtype}")
    base: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": {
            "stage": memory_estimate.resolve_zero_stage(zero_stage, dist.get_world_size()),
            "overlap_comm": False,
            "reduce_bucket_size": min(trained, memory_estimate.REDUCE_BUCKET),  # allocated whole
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    if optimizer.offload:
        base["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        base["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW runs on a CPU too
    for key, value in extra.items():
        base[key] = {**base[key], **value} if isinstance(value, Mapping) and isinstance(base.get(key), dict) else value
    return base


@contextmanager
def in_parts(settings: dict[str, Any]) -> Iterator[None]:
    """Inside it, under ZeRO 3, transformers loads a model layer by layer, and each rank keeps its part alone."""
    if settings["zero_optimization"]["stage"] < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    held = HfDeepSpeedConfig(settings)  # transformers and peft look for it through a weak reference
    yield
    del held


def set_environment() -> None:
    """Before deepspeed is imported. Its compiler wants ninja on the path, which is beside the interpreter, activated or not."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
