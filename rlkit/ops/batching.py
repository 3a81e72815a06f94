"""Splits samples over minibatches, ranks and micro-batches. Pure functions of lengths.

A minibatch is the batch of one update: whole groups, its size differs from the others by at most one group. Its samples are split over
ranks so that tokens balance. Each rank splits its share into micro-batches of at most `budget` tokens; all ranks run the same number of
them. In a micro-batch a prompt is computed once for all its samples (rlkit/engines/packing.py), so its tokens count once. The last token
of a completion counts too, which no layer sees: the budget then also bounds the rows of the head.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from rlkit.types import Sample


class SampleLength(NamedTuple):
    """Tokens of a sample."""

    prompt_id: Hashable  # equal for samples of the same prompt
    prompt: int
    completion: int


def measure_sample(sample: Sample) -> SampleLength:
    return SampleLength(sample.key.of_prompt, len(sample.prompt), len(sample.tokens))


def count_tokens(sizes: Sequence[SampleLength]) -> int:
    """Tokens of samples in one micro-batch: each prompt counts once."""
    return sum(size.completion for size in sizes) + sum({size.prompt_id: size.prompt for size in sizes}.values())


def group_by_prompt(sizes: Sequence[SampleLength]) -> list[list[int]]:
    """Indices of the samples of each prompt, longest completion first; the prompt with most tokens first."""
    found: dict[Hashable, list[int]] = {}
    for item, size in enumerate(sizes):
        found.setdefault(size.prompt_id, []).append(item)
    inside = [sorted(items, key=lambda i: (-sizes[i].completion, i)) for items in found.values()]
    return sorted(inside, key=lambda items: (-count_tokens([sizes[i] for i in items]), items))


def assign_minibatches(groups: int, minibatches: int) -> list[int]:
    """The minibatch of each group, in order: [0, 0, 0, 1, 1] for 5 groups in 2 minibatches."""
    small, larger = divmod(groups, minibatches)
    return [m for m in range(minibatches) for _ in range(small + (m < larger))]


def balance_costs(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank of each item: the largest item first, each to the rank with the smallest sum so far; of equal sums, the lowest rank."""
    loads = [(0, rank) for rank in range(ranks)]
    owner = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        owner[item] = rank
        heapq.heappush(loads, (load + costs[item], rank))
    return owner


def balance_samples(sizes: Sequence[SampleLength], ranks: int) -> list[int]:
    """The rank of each sample. The samples of a prompt stay together or are split into 2, 4, 8, ... parts: whichever gives the busiest rank
    the fewest tokens, and of equals the fewest parts."""
    everyone = group_by_prompt(sizes)
    best: tuple[int, list[int]] | None = None
    parts = 1
    while best is None or (ranks > 1 and parts < 2 * max(map(len, everyone), default=0)):
        pieces = [piece for items in everyone for start in range(parts) if (piece := items[start::parts])]
        owner = [0] * len(sizes)
        for piece, rank in zip(pieces, balance_costs([count_tokens([sizes[i] for i in piece]) for piece in pieces], ranks), strict=True):
            for item in piece:
                owner[item] = rank
        busiest = max(count_tokens([size for size, mine in zip(sizes, owner, strict=True) if mine == rank]) for rank in range(ranks))
        if best is None or busiest < best[0]:
            best = busiest, owner
        parts *= 2
    return best[1]


def split_micro_batches(sizes: Sequence[SampleLength], budget: int) -> list[list[int]]:
    """Splits samples into lists of at most `budget` tokens each, in the order of `group_by_prompt`.

    A sample goes to the last list of its prompt or, where that list is full, to the first list with room for prompt and completion.
    A sample longer than the budget gets a list of its own.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for items in group_by_prompt(sizes):
        last = None
        for item in items:
            _, prompt, completion = sizes[item]
            if last is not None and completion <= room[last]:
                prompt = 0
            else:
                last = next((b for b, left in enumerate(room) if prompt + completion <= left), None)
            if last is None:
                last = len(batches)
                batches.append([])
                room.append(budget)
            batches[last].append(item)
            room[last] -= prompt + completion
    return batches
