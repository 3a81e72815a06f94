"""Metric values that merge over micro-batches and over ranks. They are only observed; nothing depends on them.

Their numbers may be tensors [] on a device, for which the host need not wait; `merge` reads all of them in one transfer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # reward workers import this file, and are many: no torch in them

    Number = float | Tensor


@dataclass(frozen=True)
class Mean:
    """A weighted mean, kept as its two sums."""

    total: Number
    weight: Number

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        return float(self.total / self.weight) if self.weight else math.nan


@dataclass(frozen=True)
class Sum:
    """A count, or a total."""

    total: Number

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return float(self.total)


@dataclass(frozen=True)
class Max:
    """The largest seen."""

    largest: Number

    def merge(self, other: Max) -> Max:
        return other if other.largest > self.largest else self

    @property
    def value(self) -> float:
        return float(self.largest)


@dataclass(frozen=True)
class Std:
    """The standard deviation (n-1) of scalars, from their count, sum and sum of squares."""

    count: Number
    mean: Number
    squares: Number  # of the distances from the mean

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
        return float(self.mean**2 / square) if square else math.nan


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


Z95 = 1.959963984540054  # of the normal distribution, 95 % lie within so many standard deviations
Metric = Mean | Sum | Max | Std | Quantile
Metrics = dict[str, Metric]


def mean_over_mask(values: Tensor, mask: Tensor) -> Mean:
    """The mean of `values` where `mask` is True; both [...] of one shape."""
    return Mean(sum_over_mask(values, mask), mask.sum().double())


def max_over_mask(values: Tensor, mask: Tensor) -> Max:
    """The largest of `values`, none of them negative, where `mask` is True; both [...] of one shape."""
    return Max(values.detach().where(mask, 0.0).max() if mask.numel() else 0.0)


def sum_over_mask(values: Tensor, mask: Tensor) -> Tensor:
    """A scalar, float64."""
    return values.detach().double().where(mask, 0.0).sum()


def mean_of(values: Iterable[float]) -> Mean:
    """The plain mean of some numbers."""
    numbers = list(values)
    return Mean(math.fsum(numbers), float(len(numbers)))


def std_of(values: Iterable[float]) -> Std:
    """The standard deviation of some numbers."""
    numbers = list(values)
    mean = math.fsum(numbers) / max(len(numbers), 1)
    return Std(float(len(numbers)), mean, math.fsum((v - mean) ** 2 for v in numbers))


def effective_share(weights: Tensor, mask: Tensor) -> EffectiveShare:
    """The effective share of `weights` where `mask` is True; both [...] of one shape."""
    count = mask.sum().double()
    mean = sum_over_mask(weights, mask) / count.clamp(min=1.0)
    return EffectiveShare(count, mean, sum_over_mask((weights.detach().double() - mean).square(), mask))


def merge(parts: Iterable[Mapping[str, Metric]]) -> Metrics:
    """Merges metrics of the same name, in the order given. Raises TypeError where one name has two kinds."""
    merged: Metrics = {}
    for part in read_tensors(list(parts)):
        for name, metric in part.items():
            before = merged.get(name)
            if before is None:
                merged[name] = metric
            elif type(before) is not type(metric):
                raise TypeError(f"metric {name} is a {type(before).__name__} here and a {type(metric).__name__} there")
            else:
                merged[name] = before.merge(metric)  # type: ignore[arg-type]
    return merged


def read_tensors(parts: Sequence[Mapping[str, Metric]]) -> list[Mapping[str, Metric]]:
    """The metrics with plain numbers: the tensors among them are read in one transfer."""
    tensors = [value for part in parts for metric in part.values() for value in vars(metric).values() if is_tensor(value)]
    if not tensors:
        return list(parts)
    import torch

    numbers = iter(torch.stack([tensor.double().to(tensors[0].device) for tensor in tensors]).tolist())

    def read(metric: Metric) -> Metric:
        return replace(metric, **{name: next(numbers) for name, value in vars(metric).items() if is_tensor(value)})

    return [{name: read(metric) for name, metric in part.items()} for part in parts]


def is_tensor(value: object) -> bool:
    return hasattr(value, "device")


def metric_values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The value of each metric."""
    return {name: metric.value for name, metric in metrics.items()}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of independent numbers, by the normal distribution; without ends for fewer than two."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean, reach = mean_of(values).value, Z95 * std_of(values).value / math.sqrt(len(values))
    return mean - reach, mean + reach


def wilson_interval(share: Mean) -> tuple[float, float]:
    """The 95 % interval of a share of independent cases; 0 to 1 where there are none.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    n, z = float(share.weight), Z95
    if not n:
        return 0.0, 1.0
    p = share.value
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - reach, middle + reach


def describe_accuracy(accuracy: Mean) -> dict[str, float]:
    """The held-out accuracy and its 95 % interval."""
    low, high = wilson_interval(accuracy)
    return {"eval/accuracy": accuracy.value, "eval/accuracy_low": low, "eval/accuracy_high": high}
