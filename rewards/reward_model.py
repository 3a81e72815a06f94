"""What a Hugging Face sequence classifier with one label says of prompt and completion.

In a run it is asked in the trainer's process, on its device; this function is the same by hand, in a worker, on the CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from rlkit.data.renderer import Renderer
from rlkit.engines.classifier import Classifier
from rlkit.rollout.model_reward import ModelReward


def reward_model(completion: str, prompt: Any, *, model: str, **columns: Any) -> float:
    """The score, any number: the higher the better. `model`: a folder or hub name."""
    (outcome,) = _loaded(model).judge([{"prompt": prompt, "completion": completion}])
    if outcome.value is None:
        raise ValueError(outcome.detail)
    return outcome.value


@cache
def _loaded(model: str) -> ModelReward:
    return ModelReward(Renderer(model), Classifier(model, torch.float32, device=torch.device("cpu"), offline=False))
