from __future__ import annotations

import random

import pytest
import torch

from rlkit.errors import RunFailed
from rlkit.ops.batching import (
    SampleLength,
    assign_minibatches,
    balance_costs,
    balance_samples,
    count_tokens,
    measure_sample,
    split_micro_batches,
)
from rlkit.updates.collate import collate
from rlkit.updates.optimizer_step import split_in_lockstep
from tests.algorithms.tiny import Ranks, groups_of, together


@pytest.mark.parametrize(
    ("groups", "minibatches", "numbers"),
    [(5, 2, [0, 0, 0, 1, 1]), (4, 4, [0, 1, 2, 3]), (3, 1, [0, 0, 0]), (7, 3, [0, 0, 0, 1, 1, 2, 2]), (0, 2, [])],
)
def test_minibatches_are_whole_groups(groups: int, minibatches: int, numbers: list[int]) -> None:
    assert assign_minibatches(groups, minibatches) == numbers


def test_minibatches_differ_by_at_most_one_group() -> None:
    for groups in range(1, 60):
        for minibatches in range(1, groups + 1):
            numbers = assign_minibatches(groups, minibatches)
            sizes = [numbers.count(m) for m in range(minibatches)]
            assert len(numbers) == groups and numbers == sorted(numbers) and max(sizes) - min(sizes) <= 1


def test_the_largest_go_first_to_whom_has_least() -> None:
    assert balance_costs([5, 5, 4, 3, 3], 2) == [0, 1, 0, 1, 1]  # 5 + 4 and 5 + 3 + 3
    assert balance_costs([1, 1, 1, 1], 2) == [0, 1, 0, 1] and balance_costs([], 3) == [] and balance_costs([7, 2], 1) == [0, 0]


def test_ranks_are_balanced_to_within_one_item() -> None:
    rng = random.Random(9)
    for _ in range(300):
        costs = [rng.randint(1, 500) for _ in range(rng.randint(1, 80))]
        ranks = rng.randint(1, 8)
        owner = balance_costs(costs, ranks)
        loads = [sum(c for c, o in zip(costs, owner, strict=True) if o == r) for r in range(ranks)]
        assert len(owner) == len(costs) and max(loads) - min(loads) <= max(costs)
        best = max(max(costs), -(-sum(costs) // ranks))  # no dealing can do better than this
        assert max(loads) <= best * (4 / 3) or max(loads) - min(loads) <= sorted(costs)[0]  # Graham 1969: within 4/3 of the best


def alone(*lengths: int) -> list[SampleLength]:
    """Samples of which no two have one prompt."""
    return [SampleLength(i, 0, length) for i, length in enumerate(lengths)]


def drawn(rng: random.Random) -> list[SampleLength]:
    """Up to 8 prompts, up to 16 samples of each, in disorder."""
    prompts = [(name, rng.choice([0, 20, 300])) for name in range(rng.randint(0, 8))]
    sizes = [SampleLength(name, prompt, rng.randint(1, 200)) for name, prompt in prompts for _ in range(rng.randint(1, 16))]
    return rng.sample(sizes, len(sizes))


def test_a_prompt_counts_once_where_its_samples_are_together() -> None:
    assert (
        count_tokens([SampleLength(1, 5, 2), SampleLength(1, 5, 3), SampleLength(2, 5, 1)]) == 2 + 3 + 1 + 5 + 5 and count_tokens([]) == 0
    )
    samples = [scored.sample for group in groups_of([[1.0, 0.0], [1.0, 0.0]]) for scored in group.samples]
    tokens = len(samples[0].prompt) + len(samples[2].prompt) + sum(len(s.tokens) for s in samples)
    assert count_tokens([measure_sample(s) for s in samples]) == tokens


def test_micro_batches_hold_the_budget_and_everything_once() -> None:
    rng = random.Random(10)
    for _ in range(300):
        sizes = drawn(rng)
        budget = rng.choice([1, 100, 200, 1000, 10**6])
        batches = split_micro_batches(sizes, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
        for batch in batches:
            assert count_tokens([sizes[i] for i in batch]) <= budget or len(batch) == 1
        fits = [batch for batch in batches if count_tokens([sizes[i] for i in batch]) <= budget]
        fullest = sum(count_tokens([sizes[i] for i in batch]) for batch in fits)
        assert len(fits) <= 1 or fullest > budget / 2 * len(fits)  # two that are half empty would have been one
        assert sum(count_tokens([sizes[i] for i in batch]) for batch in batches) <= sum(size.prompt + size.completion for size in sizes)
    assert split_micro_batches(alone(3, 9, 4, 4), 8) == [[1], [2, 3], [0]]  # 9 alone past the budget, 4 + 4, then 3
    assert split_micro_batches(alone(1, 5, 3, 2), 7) == [[1, 3], [2, 0]]  # 5 + 2, since 3 does not fit beside 5
    assert split_micro_batches(alone(4, 4), 7) == [[0], [1]] and split_micro_batches(alone(4, 4), 8) == [[0, 1]]


def test_samples_of_a_prompt_go_together() -> None:
    """Of prompt 7 (4 tokens) 3, 2 and 1, of prompt 8 (1 token) 5 and 2; a budget of 10: 4 + 3 + 2 + 1, then 1 + 5 + 2."""
    sizes = [SampleLength(7, 4, 2), SampleLength(8, 1, 5), SampleLength(7, 4, 1), SampleLength(8, 1, 2), SampleLength(7, 4, 3)]
    assert split_micro_batches(sizes, 10) == [[4, 0, 2], [1, 3]]
    assert split_micro_batches(sizes, 9) == [[4, 0], [2], [1, 3]]  # 4 + 3 + 2, the prompt of 4 a second time for 1, and 1 + 5 + 2
    assert split_micro_batches(sizes[:3], 16) == [[0, 2, 1]]  # 4 + 2 + 1, and 1 + 5 into what is left


def test_ranks_get_whole_prompts_unless_parts_balance_better() -> None:
    four = [SampleLength(name, 10, 1) for name in range(4) for _ in range(3)]
    assert balance_samples(four, 2) == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert balance_samples([SampleLength(0, 2, 9)] * 4, 2) == [0, 1, 0, 1]  # 2 + 18 on each
    assert balance_samples([SampleLength(0, 99, 1)] * 2, 2) == [0, 1]  # 100 on each is less than 101 on one
    assert balance_samples([SampleLength(0, 0, 1)] * 2 + [SampleLength(1, 0, 1)] * 2, 2) == [
        0,
        0,
        1,
        1,
    ]  # parts would balance as well, and no better
    assert balance_samples([], 3) == [] and balance_samples(four, 1) == [0] * 12


def test_no_rank_has_more_than_samples_dealt_singly_would_give_it() -> None:
    rng = random.Random(12)
    for _ in range(300):
        sizes, ranks = drawn(rng), rng.randint(1, 8)

        def busiest(owner: list[int], sizes: list[SampleLength] = sizes, ranks: int = ranks) -> int:
            return max(count_tokens([s for s, mine in zip(sizes, owner, strict=True) if mine == rank]) for rank in range(ranks))

        owner = balance_samples(sizes, ranks)
        assert len(owner) == len(sizes) and set(owner) <= set(range(ranks))
        singly = [0] * len(sizes)
        order = sorted(range(len(sizes)), key=lambda i: -sizes[i].prompt - sizes[i].completion)
        for item, rank in zip(order, balance_costs([sizes[i].prompt + sizes[i].completion for i in order], ranks), strict=True):
            singly[item] = rank
        assert busiest(owner) <= busiest(singly) + max((s.completion for s in sizes), default=0)


class SharedRows(Ranks):
    """All ranks share their rows."""

    @property
    def sp_size(self) -> int:  # type: ignore[override]
        return self.world

    def gather_sp(self, things: list[SampleLength]) -> tuple[list[SampleLength], int]:
        everyones = self.gather(things)
        return [thing for part in everyones for thing in part], sum(len(part) for part in everyones[: self.rank])


def test_a_sequence_parallel_group_cuts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has 9 and 1 tokens, rank 1 has 4 and 5, 5 tokens a rank: 9 + 1, then 5 + 4."""
    monkeypatch.setattr("tests.algorithms.tiny.Ranks", SharedRows)
    sizes = [[SampleLength(0, 0, 9), SampleLength(1, 0, 1)], [SampleLength(2, 0, 4), SampleLength(3, 0, 5)]]
    assert together(2, lambda ranks: split_in_lockstep(sizes[ranks.rank], 5, ranks)) == [[[0, 1], []], [[], [1, 0]]]  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_every_sample_of_a_step_is_somebodys(world: int, minibatches: int) -> None:
    """Five groups of three; the global order is that of the group numbers, whoever brought them."""
    rewards: list[list[float | None]] = [[float(3 * g + n) for n in range(3)] for g in range(5)]
    rewards[4][1] = None
    groups = groups_of(rewards)
    batches = together(world, lambda ranks: collate(groups[::-1][ranks.rank :: world], ranks, minibatches, 0))  # type: ignore[arg-type]
    owned = sorted(i for _, batch in batches for i in batch.index.tolist())
    assert owned == list(range(15))
    parts = assign_minibatches(5, minibatches)
    for everyone, batch in batches:
        assert [g.index for g in everyone] == list(range(5)) and batch.size == 15
        for row, i in enumerate(batch.index.tolist()):
            sample = groups[i // 3].samples[i % 3].sample
            assert batch.samples[row] is sample and batch.group[row] == i // 3 and batch.minibatch[row] == parts[i // 3]
            assert batch.valid[row] == (i != 13) and batch.rewards[row] == (0.0 if i == 13 else float(i))
            length = len(sample.tokens)
            assert torch.equal(batch.mask[row, :length], sample.mask) and not batch.mask[row, length:].any()
            assert torch.equal(batch.rollout_logprobs[row, :length], sample.rollout_logprobs)
    for m in range(minibatches):
        loads = [
            count_tokens([measure_sample(s) for s, part in zip(b.samples, b.minibatch.tolist(), strict=True) if part == m])
            for _, b in batches
        ]
        assert max(loads) <= sum(loads) / world + 14  # the longest sample: 5 + 9 tokens


def test_more_ranks_than_samples() -> None:
    def work(ranks: Ranks) -> tuple[int, tuple[int, ...]]:
        _, batch = collate(groups_of([[1.0, 0.0]]) if ranks.rank == 0 else [], ranks, 1, 0)  # type: ignore[arg-type]
        return len(batch.samples), tuple(batch.mask.shape)

    sizes = together(3, work)
    assert sorted(n for n, _ in sizes) == [0, 1, 1] and sizes[[n for n, _ in sizes].index(0)][1] == (0, 0)


@pytest.mark.parametrize("version", [1, -1])
def test_tokens_of_other_weights_never_reach_a_loss(version: int) -> None:
    """Law 4: the samples are of version 0; one token of another version that counts is refused by name."""
    groups = groups_of([[1.0, 0.0], [1.0, 0.0]])
    stale = groups[1].samples[0].sample
    stale.versions[int(stale.mask.nonzero()[-1])] = version
    with pytest.raises(RunFailed, match=r"prompt=1, draw=0, sample=0.* was sampled by weights .*, the policy is at 0"):
        together(1, lambda ranks: collate(groups, ranks, 1, 0))  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="the policy is at 7"):
        together(1, lambda ranks: collate(groups, ranks, 1, 7))  # type: ignore[arg-type]
