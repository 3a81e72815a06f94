"""What every builder of a run's parts gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from rlkit.assembly.base_model import find_dtype
from rlkit.assembly.teacher import LocatedTeacher
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.report import Report
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer


@dataclass(frozen=True)
class BuildContext:
    """`folder`: of the run; `model_path`: where the model of the recipe is."""

    recipe: Recipe
    ranks: Ranks
    folder: Path
    model_path: str
    renderer: Renderer
    report: Report
    timer: PhaseTimer
    stopping: StopRequest
    teacher: LocatedTeacher | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return find_dtype(self.recipe, self.ranks.device)


Value = TypeVar("Value")


def require(value: Value | None) -> Value:
    """A value of the recipe that a check of the recipe has found to be set: an algorithm that samples has rewards and sampling settings."""
    assert value is not None
    return value
