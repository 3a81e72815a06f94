"""The backend of learners that tests build by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlkit.engines.deepspeed import DeepSpeed
from rlkit.engines.deepspeed_config import DeepSpeedSettings, OptimizerSettings

CPU = torch.device("cpu")


def settings(
    stage: int, *, norm: float = 1.0, offload: bool = False, wide: bool = True, extra: Mapping[str, Any] | None = None
) -> DeepSpeedSettings:
    """norm: to which gradients are clipped; wide: gradients of any dtype add up in float32."""
    return DeepSpeedSettings(stage, OptimizerSettings((0.9, 0.95), 1e-8, 0.0, norm), offload, wide, extra or {})


def deepspeed(stage: int, device: torch.device = CPU, **more: Any) -> DeepSpeed:
    return DeepSpeed(settings(stage, **more), device)
