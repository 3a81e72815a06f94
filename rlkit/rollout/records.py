"""The rows of metrics.jsonl and samples.jsonl that are made of groups and samples; names are TRL's where it has one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rlkit.metrics import mean_of, std_of
from rlkit.rewarding.outcome import RAW_REWARD
from rlkit.types import Group, Sample, ScoredSample, Stop


def summarize_groups(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards and lengths of a step."""
    scored = [s for g in groups for s in g.samples]
    valid = [[reward for s in g.samples if (reward := get_raw_reward(s)) is not None] for g in groups]
    lengths = [count_written_tokens(s.sample) for s in scored]
    ended = [count_written_tokens(s.sample) for s in scored if s.sample.stop is Stop.EOS]
    row = {
        "reward": mean_of(r for group in valid for r in group).value,
        "reward_std": mean_of(statistics.stdev(group) if len(group) > 1 else 0.0 for group in valid).value,
        "completions/mean_length": mean_of(lengths).value,
        "completions/min_length": float(min(lengths, default=0)),
        "completions/max_length": float(max(lengths, default=0)),
        "completions/mean_terminated_length": mean_of(ended).value if ended else 0.0,
        "completions/clipped_ratio": 1.0 - len(ended) / max(len(scored), 1),
        "rewards_failed": float(sum(s.reward is None for s in scored)),
    }
    for name in scored[0].components if scored else ():
        values = [value for s in scored if (value := s.components[name]) is not None]
        row[f"rewards/{name}/mean"] = mean_of(values).value
        row[f"rewards/{name}/std"] = std_of(values).value
    return row


def count_written_tokens(sample: Sample) -> int:
    """Tokens that the policy wrote; those of an environment have mask False."""
    return int(sample.mask.sum())


def get_raw_reward(scored: ScoredSample) -> float | None:
    """The reward before normalisation, which makes the mean of any group 0."""
    return scored.extra.get(RAW_REWARD, scored.reward)


def build_sample_row(scored: ScoredSample, advantage: float | None, decode: Callable[[Sequence[int]], str], split: str) -> dict[str, Any]:
    """One line of samples.jsonl."""
    sample = scored.sample
    return {
        "split": split,
        "key": list(sample.key),
        "prompt": decode(sample.prompt),
        "completion": sample.text,
        "reward": get_raw_reward(scored),
        "rewards": dict(scored.components),
        "advantage": advantage,
        "stop": str(sample.stop),
        "version": int(sample.versions[0]) if len(sample.versions) else None,
    }
