from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rlkit.ops.masking import Reduction, count_units, pad_rows, token_weights, weighted_sum
from tests.ops import oracle

REDUCTIONS: list[Reduction] = ["token_mean", "sequence_mean", "fixed_length"]
MASK = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])


def test_exact_weights() -> None:
    """Three sequences of 2, 1 and 0 tokens that count."""
    totals = count_units(MASK)
    assert totals.tolist() == [3.0, 3.0]
    for reduction, rows in {
        "token_mean": [[1 / 3, 0, 1 / 3], [1 / 3, 0, 0], [0, 0, 0]],
        "sequence_mean": [[1 / 6, 0, 1 / 6], [1 / 3, 0, 0], [0, 0, 0]],
        "fixed_length": [[1 / 30, 0, 1 / 30], [1 / 30, 0, 0], [0, 0, 0]],
    }.items():
        weights = token_weights(MASK, reduction, totals, 10)  # type: ignore[arg-type]
        assert weights.double().flatten().tolist() == pytest.approx([w for row in rows for w in row], abs=1e-8)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_is_the_loop(reduction: Reduction) -> None:
    rng = random.Random(2)
    for _ in range(50):
        mask = oracle.ragged(rng, rows=rng.randint(3, 6))
        losses = [[rng.gauss(0, 3) for _ in row] for row in mask]
        flags, grid = torch.tensor(mask), torch.tensor(losses, dtype=torch.float64, requires_grad=True)
        total = weighted_sum(grid, token_weights(flags, reduction, count_units(flags), 9))
        assert total.item() == pytest.approx(oracle.reduced(losses, mask, reduction, 9), rel=1e-10, abs=1e-10)
        total.backward()
        width = len(mask[0])
        flat = [x for row in losses for x in row]

        def loop(x: list[float], mask: list[list[bool]] = mask, width: int = width) -> float:
            return oracle.reduced([x[i : i + width] for i in range(0, len(x), width)], mask, reduction, 9)

        assert grid.grad is not None
        assert grid.grad.flatten().tolist() == pytest.approx(oracle.slopes(loop, flat), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parts_add_up_to_the_whole_exactly(reduction: Reduction) -> None:
    """Rows in any parts and any width, with the totals of all: the same weights, to the bit."""
    mask = torch.rand(9, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[4] = False
    whole = token_weights(mask, reduction, count_units(mask), 11)
    parts = [mask[:2], mask[2:3], mask[3:]]
    totals = torch.stack([count_units(part) for part in parts]).sum(0)
    assert torch.equal(torch.cat([token_weights(part, reduction, totals, 11) for part in parts]), whole)
    wide = torch.cat([mask, torch.zeros(9, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(token_weights(wide, reduction, totals, 11)[:, :7], whole)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_that_counts_weighs_nothing(reduction: Reduction) -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert token_weights(mask, reduction, count_units(mask), 5).tolist() == [[0.0] * 3] * 2
    none = torch.zeros(0, 3, dtype=torch.bool)
    assert count_units(none).tolist() == [0.0, 0.0] and token_weights(none, reduction, count_units(none), 5).shape == (0, 3)


def test_a_sum_is_blind_where_the_weight_is_nothing() -> None:
    """What stands beyond a completion may be anything; neither value nor gradient sees it."""
    losses = torch.tensor([2.0, torch.nan, torch.inf, -3.0], requires_grad=True)
    total = weighted_sum(losses, torch.tensor([0.5, 0.0, 0.0, 2.0]))
    total.backward()
    assert total.item() == -5.0 and losses.grad is not None and losses.grad.tolist() == [0.5, 0.0, 0.0, 2.0]


def test_padding_is_on_the_right_and_touches_nothing() -> None:
    rows: list[Tensor] = [torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3])]
    grid = pad_rows(rows, 3, -1)
    assert grid.tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1]] and grid.dtype == torch.int64
    assert rows[0].tolist() == [1, 2] and pad_rows([], 4, 0.0).shape == (0, 4)
    assert pad_rows([torch.tensor([True])], 2, False).tolist() == [[True, False]]
