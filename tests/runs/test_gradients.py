"""No way of cutting a step up changes a gradient through DeepSpeed, in float32: order, micro-batches, ranks, ZeRO stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.algorithms import OFFLINE
from tests.algorithms.shipped import NAMES
from tests.conftest import run

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def gradients(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("gradients")
    seen = {}
    for ranks in (1, 2):
        seen[ranks] = seen_by(folder / f"{ranks}.pt", tiny_model, ranks)
    return seen


def seen_by(out: Path, model: Path, ranks: int, *more: str) -> Any:
    ended = run(str(out), str(model), *more, program="gradients.py", ranks=ranks, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    return torch.load(out)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", [*NAMES, *sorted(OFFLINE)])
def test_no_cut_changes_a_gradient(gradients: dict[int, Any], name: str) -> None:
    wanted = gradients[1][1, name, "whole"]
    assert wanted.norm() > 1e-3
    worst = max(
        apart(gradients[ranks][stage, name, way], wanted) for ranks in (1, 2) for stage in STAGES for way in ("whole", "cut", "shuffled")
    )
    print(f"{name}: {worst:.1e}")
    assert worst < 1e-6


def test_sharing_rows_changes_no_gradient(gradients: dict[int, Any], tiny_model: Path, tmp_path: Path) -> None:
    """Of the policy, PPO's critic and DPO, under ZeRO 1, 2 and 3."""
    shared = seen_by(tmp_path / "crew.pt", tiny_model, 2, "2")
    assert len(shared) == 9
    worst = max(apart(found, gradients[1][1, name, "whole"]) for (_, name, _), found in shared.items())
    print(f"in shared rows: {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_step_is_on_policy(gradients: dict[int, Any], ranks: int) -> None:
    """Where old log-probs are computed the ratio is 1; leaving the pass out gives the same gradient."""
    for stage in STAGES:
        computed, left_out, ratio = gradients[ranks][stage, "first step"]
        assert ratio <= 1e-5
        assert apart(computed, left_out) < 1e-6
