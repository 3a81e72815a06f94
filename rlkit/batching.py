"""Who works on which samples, in which order: minibatches, ranks, micro-batches. Pure functions of lengths.

A minibatch is what one update sees: whole groups, sizes differing by at most one group. Its samples are dealt to ranks until tokens
balance; each rank cuts its share into micro-batches of at most `budget` tokens, and all ranks run equally many.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


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


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cuts items into lists of at most `budget` tokens together: the longest first, each into the first list with room for it.

    An item longer than the budget stands alone.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        found = next((b for b, left in enumerate(room) if lengths[item] <= left), None)
        if found is None:
            batches.append([item])
            room.append(budget - lengths[item])
        else:
            batches[found].append(item)
            room[found] -= lengths[item]
    return batches
