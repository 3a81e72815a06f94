"""Metric values that merge over micro-batches and over ranks. They are only observed; nothing depends on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # reward workers import this file, and are many: no torch in them


@dataclass(frozen=True)
class Mean:
    """A weighted mean, kept as its two sums."""

    total: float
    weight: float

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan


@dataclass(frozen=True)
class Sum:
    """A count, or a total."""

    total: float

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True)
class Max:
    """The largest seen."""

    largest: float

    def merge(self, other: Max) -> Max:
        return Max(max(self.largest, other.largest))

    @property
    def value(self) -> float:
        return self.largest


@dataclass(frozen=True)
class Std:
    """The standard deviation (n-1) of scalars, from their count, sum and sum of squares."""

    count: float
    mean: float
    squares: float  # of the distances from the mean

    def merge(self, other: Std) -> Std:
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * self.count * other.count / count
        return Std(count, self.mean + apart * other.count / count, squares)

    @property
    def value(self) -> float:
        if self.count < 2:
            return 0.0
        return math.sqrt(self.squares / (self.count - 1))


@dataclass(frozen=True)
class EffectiveShare(Std):
    """Of weights w: (sum w)^2 / (n sum w^2), the effective share of the samples; 1 where all weights are equal."""

    def merge(self, other: Std) -> EffectiveShare:
        both = super().merge(other)
        return EffectiveShare(both.count, both.mean, both.squares)

    @property
    def value(self) -> float:
        square = self.mean**2 + self.squares / self.count if self.count else 0.0  # the mean of the squares
        return self.mean**2 / square if square else math.nan


@dataclass(frozen=True)
class Quantile:
    """The percentile of some numbers by nearest rank."""

    numbers: tuple[float, ...]
    percent: float

    def merge(self, other: Quantile) -> Quantile:
        return Quantile(self.numbers + other.numbers, self.percent)

    @property
    def value(self) -> float:
        return sorted(self.numbers)[math.ceil(self.percent / 100 * len(self.numbers)) - 1] if self.numbers else math.nan


Metric = Mean | Sum | Max | Std | Quantile
Metrics = dict[str, Metric]


def mean_over_mask(values: Tensor, mask: Tensor) -> Mean:
    """The mean of `values` where `mask` is True; both [...] of one shape."""
    chosen = values.detach()[mask].double()
    return Mean(float(chosen.sum()), float(mask.sum()))


def mean_of(values: Iterable[float]) -> Mean:
    """The plain mean of some numbers."""
    numbers = list(values)
    return Mean(math.fsum(numbers), float(len(numbers)))


def std_of(values: Iterable[float]) -> Std:
    """The standard deviation of some numbers."""
    numbers = list(values)
    mean = math.fsum(numbers) / max(len(numbers), 1)
    return Std(float(len(numbers)), mean, math.fsum((v - mean) ** 2 for v in numbers))


def effective_share(weights: Tensor) -> EffectiveShare:
    """The effective share of weights [n]."""
    mean = weights.mean() if weights.numel() else weights.sum()
    return EffectiveShare(float(weights.numel()), float(mean), float((weights - mean).square().sum()))


def merge(parts: Iterable[Mapping[str, Metric]]) -> Metrics:
    """Merges metrics of the same name, in the order given. Raises TypeError where one name has two kinds."""
    merged: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            before = merged.get(name)
            if before is None:
                merged[name] = metric
            elif type(before) is not type(metric):
                raise TypeError(f"metric {name} is a {type(before).__name__} here and a {type(metric).__name__} there")
            else:
                merged[name] = before.merge(metric)  # type: ignore[arg-type]
    return merged


def metric_values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The value of each metric."""
    return {name: metric.value for name, metric in metrics.items()}


def wilson_interval(share: Mean) -> tuple[float, float]:
    """The 95 % interval of a share of independent cases; 0 to 1 where there are none.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    n, z = share.weight, 1.959963984540054
    if not n:
        return 0.0, 1.0
    p = share.value
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - reach, middle + reach
