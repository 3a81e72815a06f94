"""The maths once more, from the papers, in loops over plain Python floats (float64): slow, and easy to check by eye."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

Grid = list[list[float]]
Flags = list[list[bool]]


def slopes(function: Callable[[list[float]], float], at: Sequence[float], step: float = 1e-6) -> list[float]:
    """The gradient of a function of many numbers by central differences."""
    gradient = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i] += step
        down[i] -= step
        gradient.append((function(up) - function(down)) / (2 * step))
    return gradient


def log_softmax(logits: Sequence[float], temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    total = math.fsum(math.exp(x - top) for x in scaled)
    return [x - top - math.log(total) for x in scaled]


def entropy(logits: Sequence[float], temperature: float) -> float:
    return -math.fsum(math.exp(x) * x for x in log_softmax(logits, temperature))


def k1(pi: float, ref: float) -> float:
    return pi - ref


def k2(pi: float, ref: float) -> float:
    return (pi - ref) ** 2 / 2


def k3(pi: float, ref: float) -> float:
    """2402.03300, equation 4."""
    return math.exp(ref - pi) - (ref - pi) - 1


def clipped(log_ratio: float, advantage: float, low: float, high: float) -> float:
    """1707.06347, equation 7, negated."""
    ratio = math.exp(log_ratio)
    held = min(max(ratio, 1 - low), 1 + high)
    return -min(ratio * advantage, held * advantage)


def advantages(rewards: Sequence[float | None], groups: Sequence[int], scale: bool) -> list[float]:
    """2402.03300, section 4.1.2; None is a reward that failed. Without `scale`: 2503.20783."""
    answers = []
    for reward, group in zip(rewards, groups, strict=True):
        mates = [r for r, g in zip(rewards, groups, strict=True) if g == group and r is not None]
        if reward is None or len(mates) < 2 or len(set(mates)) == 1:
            answers.append(0.0)
            continue
        mean = math.fsum(mates) / len(mates)
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in mates) / (len(mates) - 1))
        answers.append((reward - mean) / max(std, 1e-6) if scale else reward - mean)
    return answers


def reduced(losses: Grid, mask: Flags, reduction: str, fixed_length: int) -> float:
    """One number from losses a token; a sequence none of whose tokens count is a sequence still."""
    sums = [math.fsum(loss for loss, m in zip(row, flags, strict=True) if m) for row, flags in zip(losses, mask, strict=True)]
    counts = [sum(flags) for flags in mask]
    if reduction == "token_mean":
        return math.fsum(sums) / max(sum(counts), 1)
    if reduction == "sequence_mean":
        return math.fsum(s / max(n, 1) for s, n in zip(sums, counts, strict=True)) / max(len(mask), 1)
    return math.fsum(sums) / (fixed_length * max(len(mask), 1))


def ragged(rng: random.Random, rows: int = 5, longest: int = 6) -> Flags:
    """A mask [rows, longest] with the hard cases in it: a length of one, a row none of whose tokens count, holes."""
    lengths = [1, longest, *(rng.randint(1, longest) for _ in range(rows - 2))]
    mask = [[t < n and rng.random() < 0.8 for t in range(longest)] for n in lengths]
    mask[0][0] = mask[1][longest - 1] = True
    mask[2] = [False] * longest
    rng.shuffle(mask)
    return mask
