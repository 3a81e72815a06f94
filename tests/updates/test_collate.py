"""How old the tokens of a sample are, of those that count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlkit.errors import RunFailed
from rlkit.types import Group, Key, Sample, ScoredSample, Stop
from rlkit.updates.collate import collate, compute_lag
from tests.algorithms.tiny import Ranks, together


def sample(versions: list[int], mask: list[bool]) -> Sample:
    length = len(versions)
    return Sample(
        key=Key(0, 0, 0),
        prompt=(1,),
        tokens=torch.zeros(length, dtype=torch.int64),
        mask=torch.tensor(mask, dtype=torch.bool),
        rollout_logprobs=torch.zeros(length),
        versions=torch.tensor(versions, dtype=torch.int32),
        stop=Stop.EOS,
        text="",
    )


def test_the_lag_of_a_token_that_counts_is_by_its_own_weights() -> None:
    assert compute_lag(sample([3, 5, 4], [True, True, True]), 5).tolist() == [2, 0, 1]
    assert compute_lag(sample([3, 5, 4], [False, True, True]), 5).tolist() == [0, 0, 1]  # the environment wrote the first
    assert compute_lag(sample([], []), 5).tolist() == [] and compute_lag(sample([4], [True]), 3).tolist() == [-1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_tells_the_tokens_of_the_current_weights_from_older_ones(world: int) -> None:
    """A completion that two versions of the weights wrote, one of the current weights alone, and their padding; the third rank has none."""
    versions, masks = {0: [3, 3, 4, 5], 1: [5, 5]}, {0: [True, False, True, True], 1: [True, True]}
    groups = [Group(i, (ScoredSample(sample(versions[i], masks[i]), 1.0, {}),)) for i in (0, 1)]

    def work(ranks: Ranks) -> Any:
        _, batch = collate(groups[ranks.rank :: world], ranks, 1, 5, max_lag=2)  # type: ignore[arg-type]
        assert batch.lag.shape == batch.mask.shape and batch.lag.dtype == torch.int64
        with pytest.raises(RunFailed, match="learns from samples of weights at most 1 steps old"):
            collate(groups, ranks, 1, 5, max_lag=1)  # type: ignore[arg-type]
        return {i: (lag[:4], own[:4]) for i, lag, own in zip(batch.index.tolist(), batch.lag.tolist(), batch.own.tolist(), strict=True)}

    seen = {i: row for part in together(world, work) for i, row in part.items()}
    assert seen[0] == ([2, 0, 1, 0], [False, False, False, True])
    assert [x[:2] for x in seen[1]] == [[0, 0], [True, True]] and not any(seen[1][0][2:]) and not any(seen[1][1][2:])
