"""Two processes do what one does: the same completions, the same gradient, under ZeRO 2 and 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import run


def first_gradient(small: list[str], folder: Path, ranks: int, zero: int = 2) -> Any:
    out = folder / f"{ranks}-{zero}.pt"
    threads = {"OMP_NUM_THREADS": "1"}
    ended = run(
        str(out),
        *small,
        f"engine.zero_stage={zero}",
        f"output_dir={folder / out.stem}",
        program="first_gradient.py",
        ranks=ranks,
        **threads,
    )
    assert ended.code == 0, ended.out + ended.err
    return torch.load(out)


@pytest.fixture(scope="module")
def alone(small_vllm: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return first_gradient(small_vllm, tmp_path_factory.mktemp("alone"), ranks=1, zero=2)


@pytest.mark.parametrize("zero", [2, 3])
def test_two_processes_are_one(alone: Any, small_vllm: list[str], tmp_path: Path, zero: int) -> None:
    both = first_gradient(small_vllm, tmp_path, ranks=2, zero=zero)
    assert both["share"] < alone["share"] == 16
    same_as(alone, both)


@pytest.mark.slow
def test_prompts_that_do_not_divide_among_the_ranks(small: list[str], tmp_path: Path) -> None:
    """Three prompts: one process has them all, of two one has two, of four one has none."""
    words = [*small, "prompts_per_step=3"]
    one, two, four = (first_gradient(words, tmp_path, ranks) for ranks in (1, 2, 4))
    assert one["share"] == 12
    same_as(one, two)
    same_as(one, four)


def same_as(alone: Any, many: Any) -> None:
    """The completions of a first step, and its gradient within 1e-6."""
    assert many["tokens"].keys() == alone["tokens"].keys()
    assert all(torch.equal(many["tokens"][key], tokens) for key, tokens in alone["tokens"].items())
    one = torch.cat([g.flatten().double() for g in alone["gradients"].values()])
    other = torch.cat([many["gradients"][name].flatten().double() for name in alone["gradients"]])
    assert one.norm() > 1e-3
    assert (one - other).norm() / one.norm() < 1e-6


def test_reward_statistics_are_those_of_all_ranks(tmp_path: Path) -> None:
    """Of four samples one fails, on the second rank; sizes 1, 2 and 6 are the first's."""
    ended = run(str(tmp_path / "rates.json"), program="rates.py", ranks=2, cold=True, OMP_NUM_THREADS="1")  # by torchrun
    assert ended.code == 0, ended.out + ended.err
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates.pop("time/reward_p50") > 0 and rates.pop("time/reward_p99") > 0
    assert rates == {
        "rewards/f/failure_rate": 0.25,
        "rewards/f/timeout_rate": 0.0,
        "rewards/f/not_applicable_rate": 0.0,
        "rewards/f/size": 3.0,
        "counted": 4,
    }
