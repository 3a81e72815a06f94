"""No way of cutting a step up changes a gradient through DeepSpeed, in float32: order, micro-batches, ranks, ZeRO stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.algorithms import OFFLINE
from tests.algorithms.shipped import NAMES
from tests.algorithms.test_grpo import REWARDS
from tests.algorithms.tiny import episodes_of
from tests.conftest import run
from tests.ops import oracle

ALL = [*NAMES, *sorted(OFFLINE)]
STAGES = {1: (1, 3), 2: (1, 2, 3)}  # ranks: stages that differ there (0 is run as 1, and in one process 2 too)
DIAGONAL = {  # ranks: every algorithm under one stage, cut and shuffled alternately
    1: [*(f"1:{name}:whole" for name in [*ALL, "episodes"]), "3:grpo:cut", "1:first:step"],
    2: [
        *(f"{i % 3 + 1}:{name}:{('cut', 'shuffled')[i % 2]}" for i, name in enumerate(ALL)),
        *("1:episodes:cut", "2:episodes:shuffled", "3:episodes:cut", "3:first:step"),
    ],
}
Seen = Callable[[int, int, list[str]], dict[Any, torch.Tensor]]


@pytest.fixture(scope="module")
def seen_by(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What the program saw on so many ranks, so many of which share rows, of the cells named, or of all."""
    folder = tmp_path_factory.mktemp("gradients")

    def seen(ranks: int, sharing: int, cells: list[str]) -> dict[Any, torch.Tensor]:
        out = folder / "gradients.pt"
        ended = run(str(out), str(tiny_model), str(sharing), *cells, program="gradients.py", ranks=ranks, OMP_NUM_THREADS="1")
        assert ended.code == 0, ended.out + ended.err
        found: dict[Any, torch.Tensor] = torch.load(out)
        return found

    return seen


@pytest.fixture(scope="module")
def diagonal(seen_by: Seen) -> dict[int, Any]:
    return {ranks: seen_by(ranks, 1, cells) for ranks, cells in DIAGONAL.items()}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
def test_no_cut_changes_a_gradient(diagonal: dict[int, Any]) -> None:
    wanted = {name: diagonal[1][1, name, "whole"] for name in ALL}
    assert all(gradient.norm() > 1e-3 for gradient in wanted.values())
    found = {key: apart(gradient, wanted[key[1]]) for key, gradient in diagonal[2].items() if key[1] in wanted}
    print(found)
    assert {name for _, name, _ in found} == set(ALL) and max(found.values()) < 1e-6
    assert apart(diagonal[1][3, "grpo", "cut"], wanted["grpo"]) < 1e-6


@pytest.mark.slow
def test_the_first_step_is_on_policy(diagonal: dict[int, Any]) -> None:
    """Where old log-probs are computed the ratio is 1; leaving the pass out gives the same gradient."""
    for ranks, stage in ((1, 1), (2, 3)):
        first_step_agrees(diagonal[ranks][stage, "first step"])


def first_step_agrees(seen: tuple[torch.Tensor, torch.Tensor, float]) -> None:
    computed, left_out, ratio = seen
    assert ratio <= 1e-5
    assert apart(computed, left_out) < 1e-6


def dense_gradient(model: Path, masked: bool = True) -> torch.Tensor:
    """Of GRPO's first update on the episodes, by transformers alone, a row at a time: -A / L_i / N of each token that was sampled."""
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    groups = episodes_of(REWARDS)
    flat = [reward for row in REWARDS for reward in row]
    advantages = oracle.advantages(flat, [group.index for group in groups for _ in group.samples], True)
    for advantage, sample in zip(advantages, [s.sample for group in groups for s in group.samples], strict=True):
        row = torch.tensor([*sample.prompt, *sample.tokens.tolist()])
        logits = policy(input_ids=row[None], use_cache=False).logits[0, len(sample.prompt) - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(-1, sample.tokens[:, None])[:, 0]
        counted = sample.mask if masked else torch.ones_like(sample.mask)
        (-advantage * chosen[counted].sum() / counted.sum() / len(advantages)).backward()
    return torch.cat([p.grad.double().flatten() for p in policy.parameters()])


@pytest.mark.slow
def test_the_gradient_of_episodes_is_that_of_dense_rows_over_what_was_sampled(diagonal: dict[int, Any], tiny_model: Path) -> None:
    """On one rank and two, under ZeRO 1 to 3, packed and cut."""
    episodes = {(ranks, *key): found for ranks, cells in diagonal.items() for key, found in cells.items() if key[1] == "episodes"}
    wanted = dense_gradient(tiny_model)
    found = {key: apart(gradient, wanted) for key, gradient in episodes.items()}
    print(found)
    assert {key[:2] for key in found} == {(1, 1), (2, 1), (2, 2), (2, 3)} and max(found.values()) < 1e-6
    assert wanted.norm() > 1e-3 and apart(dense_gradient(tiny_model, masked=False), wanted) > 1e-2


@pytest.mark.slow
def test_sharing_rows_changes_no_gradient(diagonal: dict[int, Any], seen_by: Seen) -> None:
    """Of the policy, PPO's critic, DPO and episodes."""
    agree(seen_by(2, 2, ["2:grpo:cut", "3:ppo:cut", "1:dpo:cut", "2:episodes:cut"]), diagonal[1], 4)


def agree(found: dict[Any, torch.Tensor], alone: dict[Any, torch.Tensor], cells: int) -> None:
    assert len(found) == cells
    worst = max(apart(gradient, alone[1, name, "whole"]) for (_, name, _), gradient in found.items())
    print(f"worst of {cells}: {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.nightly(part="matrices")
@pytest.mark.timeout(900)
def test_no_cut_of_any_kind_changes_a_gradient(seen_by: Seen) -> None:
    """Every algorithm under every stage, whole, cut and shuffled, on one and two ranks, and in shared rows."""
    ways = [f"{name}:{way}" for name in [*ALL, "episodes"] for way in ("whole", "cut", "shuffled")]
    cells = {ranks: [f"{stage}:{way}" for stage in stages for way in [*ways, "first:step"]] for ranks, stages in STAGES.items()}
    found = {ranks: seen_by(ranks, 1, words) for ranks, words in cells.items()}
    for ranks, stages in STAGES.items():
        for stage in stages:
            first_step_agrees(found[ranks].pop((stage, "first step")))
        agree(found[ranks], found[1], len(stages) * len(ways))
    agree(seen_by(2, 2, []), found[1], 9)
