"""The score of prompt and completion by a Hugging Face sequence classifier with one label.

A run scores in the trainer's process, on its device; this function does the same in a worker, on the CPU (`rlkit reward try`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from rlkit.data.renderer import Renderer
from rlkit.engines.classifier import Classifier
from rlkit.rollout.model_reward import ModelReward


def reward_model(completion: str, prompt: Any, *, model: str, **columns: Any) -> float:
    """The score: any number, higher is better. model: a folder or hub name."""
    (outcome,) = _load_model(model).score([{"prompt": prompt, "completion": completion}])
    if outcome.value is None:
        raise ValueError(outcome.detail)
    return float(outcome.value)


@cache
def _load_model(model: str) -> ModelReward:
    return ModelReward(Renderer(model), Classifier(model, torch.float32, device=torch.device("cpu"), offline=False))
