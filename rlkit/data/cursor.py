"""The order of the rows: a pure function of the seed and of a position, so that any rank and any resumed run sees the same one.

N rows in all. Integer arithmetic of our own instead of a library's generator: an order must not change with a library's release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from rlkit import seeds
from rlkit.errors import UserError

LARGEST_BLOCK = 1000  # draws after which the ratio of the sources is met at the latest; odd weights are rounded to thousandths


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `start + count` that are shuffled among themselves."""

    start: int
    count: int
    values: np.ndarray | None  # [count] float64, small ones first


class Cursor:
    """Which row comes at which position. Several sources are one after the other in the numbering of rows.

    counts: rows of each source. weights: how often each is drawn (3, 1: of every four draws exactly three and one); None: one shuffle of
    all rows. values: [N] float64, a curriculum: each pass over a source goes from small to large, equal ones shuffled.
    """

    def __init__(
        self,
        counts: int | Sequence[int],
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        sizes = [counts] if isinstance(counts, int) else list(counts)
        self.count, self.seed = sum(sizes), seed
        groups = sizes if weights is not None else [self.count]
        starts = [sum(groups[:i]) for i in range(len(groups))]
        parts = zip(starts, groups, strict=True)
        self._parts = [_Part(start, count, None if values is None else values[start : start + count]) for start, count in parts]
        self._shares = _compute_shares([1.0] if weights is None else weights)
        if len(self._shares) != len(self._parts):
            raise ValueError(f"{len(self._shares)} weights for {len(self._parts)} sources")
        if any(part.count < 1 for part in self._parts):
            raise ValueError("a source without rows has no order")
        self._deck = np.repeat(np.arange(len(self._shares)), self._shares)  # one block of draws, by source
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source -> the last epoch that was read and its order

    def take(self, position: int, n: int) -> list[tuple[int, int]]:
        """(row, draw) of the `n` positions from `position` on; draw counts the earlier passes over the row."""
        return [self.locate(p) for p in range(position, position + n)]

    def locate(self, position: int) -> tuple[int, int]:
        """(row, draw) of one position."""
        block, inside = divmod(position, len(self._deck))
        if len(self._parts) == 1:
            source, turn = 0, position
        else:
            deck = self._deck[_permute(len(self._deck), seeds.derive_seed("mix", self.seed, block))]
            source = int(deck[inside])
            turn = block * self._shares[source] + int(np.count_nonzero(deck[:inside] == source))
        part = self._parts[source]
        epoch, place = divmod(turn, part.count)
        return part.start + int(self._get_order(source, epoch)[place]), epoch

    def _get_order(self, source: int, epoch: int) -> np.ndarray:
        """[count] int64, the permutation of one pass over a source."""
        held = self._orders.get(source)
        if held is None or held[0] != epoch:
            part = self._parts[source]
            held = self._orders[source] = epoch, _permute(part.count, seeds.derive_seed("order", self.seed, source, epoch), part.values)
        return held[1]


def _permute(count: int, key: int, values: np.ndarray | None = None) -> np.ndarray:
    """[count] int64, a permutation by the key alone: indices sorted by splitmix64 of key + index (Steele, Lea, Flood 2014), a bijection.

    With values, by these first.
    """
    with np.errstate(over="ignore"):
        mixed = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable") if values is None else np.lexsort((mixed, values))


def _compute_shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights, as small as they can be: 0.75, 0.25 -> 3, 1."""
    if any(not 0 < weight < float("inf") for weight in weights):
        raise UserError(f"the weights of data sources are {list(weights)}; expected numbers above 0")
    total = sum(weights)
    parts = [Fraction(weight / total).limit_denominator(LARGEST_BLOCK) for weight in weights]
    common = lcm(*(part.denominator for part in parts))
    if common > LARGEST_BLOCK or sum(parts) != 1:
        parts, common = [Fraction(weight / total) for weight in weights], LARGEST_BLOCK
    whole = [round(part * common) for part in parts]
    if 0 in whole:
        raise UserError(f"the weights of data sources are {list(weights)}; the smallest is under 1/{LARGEST_BLOCK} of all, leave it out")
    return [share // gcd(*whole) for share in whole]
