"""The maths once more, from the papers, in loops over plain Python floats (float64): slow, and easy to check by eye."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pytest

Grid = list[list[float]]
Flags = list[list[bool]]
Oracle = TypeVar("Oracle")


def find(oracles: Mapping[str, Oracle], name: str) -> Oracle:
    """The oracle of this name; without one the test fails with what is missing."""
    if name not in oracles:
        pytest.fail(f"no oracle for {name}; there are: {', '.join(sorted(oracles))}")
    return oracles[name]


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


def teach(teacher: Grid, old: Grid, coef: float, most: float) -> Grid:
    """The sampled reverse KL of each token, negated, as a reward: 2306.13649, equation 3 of one token; held at so many nats."""
    return [[coef * min(max(t - o, -most), most) for t, o in zip(*rows, strict=True)] for rows in zip(teacher, old, strict=True)]


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


# -- policy losses of one sequence, from the papers; None where a token does not count ------------------------------------------------


def dual_clipped(log_ratio: float, advantage: float, low: float, high: float, most: float) -> float:
    """1912.09729, equation 5, negated."""
    ratio = math.exp(log_ratio)
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return -(max(objective, most * advantage) if advantage < 0 else objective)


def cispo(logprob: float, log_ratio: float, advantage: float, low: float, high: float) -> float:
    """2506.13585, equation 4, negated; the ratio is a constant."""
    return -min(max(math.exp(log_ratio), 1 - low), 1 + high) * advantage * logprob


def sapo(log_ratio: float, advantage: float, positive: float, negative: float) -> float:
    """2511.20347, equations 5 and 6, negated."""
    tau = positive if advantage > 0 else negative
    return -4 / tau / (1 + math.exp(-tau * (math.exp(log_ratio) - 1))) * advantage


def dppo(logprob: float, policy: float, sampler: float, advantage: float, low: float, high: float) -> float:
    """2602.04879, the mask of binary total variation; the weight is `corrected`. Log-probs; `policy` is `logprob` as a constant."""
    moved = math.exp(policy) - math.exp(sampler)
    leaves = moved > high if advantage > 0 else moved < -low
    return 0.0 if leaves else -advantage * logprob


def sequence_mean(numbers: Sequence[float], flags: Sequence[bool]) -> list[float]:
    """At each token that counts the mean over those that do; exp of it is a geometric mean (2507.18071, equation 7)."""
    kept = [x for x, m in zip(numbers, flags, strict=True) if m]
    return [math.fsum(kept) / len(kept) if m else 0.0 for m in flags]


def corrected(log_ratios: Sequence[float], flags: Sequence[bool], mode: str, level: str, cap: float, floor: float) -> list[float]:
    """The weights of a sequence whose tokens the sampler gave other probabilities than the trainer; 2510.18855 where they are masked."""
    if mode == "none":
        return [1.0] * len(flags)
    ratios = [math.exp(x) for x in (sequence_mean(log_ratios, flags) if level == "sequence" else log_ratios)]
    return [min(r, cap) if mode == "truncate" else r * (floor <= r <= cap) for r in ratios]


# -- credit --------------------------------------------------------------------------------------------------------------------------


def leave_one_out(rewards: Sequence[float | None], groups: Sequence[int]) -> list[float]:
    """2402.14740, section 2; None is a reward that failed."""
    answers = []
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        others = [r for j, (r, g) in enumerate(zip(rewards, groups, strict=True)) if g == group and j != i and r is not None]
        answers.append(0.0 if reward is None or not others else reward - math.fsum(others) / len(others))
    return answers


def maximum_likelihood(rewards: Sequence[float | None], groups: Sequence[int]) -> list[float]:
    """2602.02710, algorithm 1: nothing is learned from a group without a success; None is a reward that failed."""
    answers = []
    for reward, group in zip(rewards, groups, strict=True):
        mates = [r for r, g in zip(rewards, groups, strict=True) if g == group and r is not None]
        total = math.fsum(mates)
        answers.append(0.0 if reward is None or total == 0.0 or len(set(mates)) == 1 else reward * len(mates) / total - 1.0)
    return answers


def whitened(grid: Grid, mask: Flags) -> Grid:
    """2501.03262: to mean 0 and deviation 1 (n - 1) over all tokens that count."""
    kept = [x for row, flags in zip(grid, mask, strict=True) for x, m in zip(row, flags, strict=True) if m]
    mean = math.fsum(kept) / max(len(kept), 1)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in kept) / max(len(kept) - 1, 1))
    if len(set(kept)) <= 1:
        return [[0.0 for _ in row] for row in grid]
    return [
        [(x - mean) / max(std, 1e-6) if m else 0.0 for x, m in zip(row, flags, strict=True)] for row, flags in zip(grid, mask, strict=True)
    ]


def to_go(rewards: Sequence[float], flags: Sequence[bool]) -> list[float]:
    return [math.fsum(r for r, m in zip(rewards[t:], flags[t:], strict=True) if m) if flags[t] else 0.0 for t in range(len(flags))]


def gae(rewards: Sequence[float], values: Sequence[float], flags: Sequence[bool], gamma: float, lam: float) -> list[float]:
    """1506.02438, equation 16, as the sum it is, over the tokens that count as if there were no others."""
    at = [t for t, m in enumerate(flags) if m]
    deltas = [rewards[t] + (gamma * values[at[i + 1]] if i + 1 < len(at) else 0.0) - values[t] for i, t in enumerate(at)]
    answers = [0.0] * len(flags)
    for i, t in enumerate(at):
        answers[t] = math.fsum((gamma * lam) ** (k - i) * deltas[k] for k in range(i, len(at)))
    return answers
