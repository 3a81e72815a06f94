"""How old a sample is: by its tokens that count."""

from __future__ import annotations

import torch

from rlkit.types import Key, Sample, Stop
from rlkit.updates.collate import compute_lag


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


def test_the_lag_is_that_of_the_oldest_token_that_counts() -> None:
    assert compute_lag(sample([3, 5, 4], [True, True, True]), 5) == 2
    assert compute_lag(sample([3, 5, 4], [False, True, True]), 5) == 1  # the environment wrote the first: no weights sampled it
    assert compute_lag(sample([0, 0], [False, False]), 5) == 0
    assert compute_lag(sample([], []), 5) == 0
