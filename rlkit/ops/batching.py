"""Who works on which samples, in which order: minibatches, ranks, micro-batches. Pure functions of lengths.

A minibatch is what one update sees: whole groups, sizes differing by at most one group. Its samples are dealt to ranks until tokens
balance; each rank cuts its share into micro-batches of at most `budget` tokens, and all ranks run equally many. A prompt is computed once
for those of its samples that are together (rlkit/engines/packing.py), so its tokens count once there.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from rlkit.types import Sample


class Size(NamedTuple):
    """Tokens of a sample."""

    name: int  # of its prompt
    prompt: int
    own: int


def size_of(sample: Sample) -> Size:
    return Size(hash(sample.prompt), len(sample.prompt), len(sample.tokens))


def total(sizes: Sequence[Size]) -> int:
    """Tokens of samples that are together."""
    return sum(size.own for size in sizes) + sum({size.name: size.prompt for size in sizes}.values())


def families(sizes: Sequence[Size]) -> list[list[int]]:
    """Items of each prompt, the longest first; the prompt with most tokens first."""
    found: dict[int, list[int]] = {}
    for item, size in enumerate(sizes):
        found.setdefault(size.name, []).append(item)
    inside = [sorted(items, key=lambda i: (-sizes[i].own, i)) for items in found.values()]
    return sorted(inside, key=lambda items: (-total([sizes[i] for i in items]), items))


def minibatch_of_group(groups: int, minibatches: int) -> list[int]:
    """For each of `groups` groups, in order, the number of its minibatch: [0, 0, 0, 1, 1] for 5 groups in 2."""
    small, larger = divmod(groups, minibatches)
    return [m for m in range(minibatches) for _ in range(small + (m < larger))]


def deal(costs: Sequence[int], ranks: int) -> list[int]:
    """For each item the rank that works on it: the largest first, each to the rank with least so far. Ties fall to the lowest."""
    loads = [(0, rank) for rank in range(ranks)]
    owner = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        owner[item] = rank
        heapq.heappush(loads, (load + costs[item], rank))
    return owner


def deal_samples(sizes: Sequence[Size], ranks: int) -> list[int]:
    """For each sample the rank that works on it. Prompts are dealt whole, or each in 2, 4, 8, ... parts: whichever leaves the busiest rank
    with least tokens, and of equals the fewest parts."""
    everyone = families(sizes)
    best: tuple[int, list[int]] | None = None
    parts = 1
    while best is None or (ranks > 1 and parts < 2 * max(map(len, everyone), default=0)):
        pieces = [piece for items in everyone for start in range(parts) if (piece := items[start::parts])]
        owner = [0] * len(sizes)
        for piece, rank in zip(pieces, deal([total([sizes[i] for i in piece]) for piece in pieces], ranks), strict=True):
            for item in piece:
                owner[item] = rank
        busiest = max(total([size for size, mine in zip(sizes, owner, strict=True) if mine == rank]) for rank in range(ranks))
        if best is None or busiest < best[0]:
            best = busiest, owner
        parts *= 2
    return best[1]


def micro_batches(sizes: Sequence[Size], budget: int) -> list[list[int]]:
    """Cuts samples into lists of at most `budget` tokens together: prompt by prompt as of `families`, each sample to the last one of its
    prompt or, where that list is full, into the first list with room for both.

    A sample longer than the budget stands alone.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for items in families(sizes):
        last = None
        for item in items:
            _, prompt, own = sizes[item]
            if last is not None and own <= room[last]:
                prompt = 0
            else:
                last = next((b for b, left in enumerate(room) if prompt + own <= left), None)
            if last is None:
                last = len(batches)
                batches.append([])
                room.append(budget)
            batches[last].append(item)
            room[last] -= prompt + own
    return batches
