"""The rows of metrics.jsonl and samples.jsonl that are made of groups and samples; names are TRL's where it has one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from rlkit.metrics import mean_of, std_of
from rlkit.rewarding.outcome import RAW_REWARD
from rlkit.rollout.episodes import TOOL_CALLS, WrittenBy, split_turns
from rlkit.types import Group, Key, Sample, ScoredSample, Stop

SET_SPLIT = "eval.sets."  # how the split of the samples of such a set begins


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
    return row | summarize_episodes(scored)


def summarize_episodes(scored: Sequence[ScoredSample]) -> dict[str, float]:
    """What a step's episodes were like; empty without an environment."""
    if not any(TOOL_CALLS in s.extra for s in scored):
        return {}
    return {
        "environment/turns": mean_of(sum(by is WrittenBy.POLICY for by, _ in split_turns(s.sample)) for s in scored).value,
        TOOL_CALLS: mean_of(s.extra[TOOL_CALLS] for s in scored).value,
        "environment/observation_tokens": mean_of(len(s.sample.mask) - count_written_tokens(s.sample) for s in scored).value,
    }


def count_written_tokens(sample: Sample) -> int:
    """Tokens that the policy wrote; those of an environment have mask False."""
    return int(sample.mask.sum())


def get_raw_reward(scored: ScoredSample) -> float | None:
    """The reward before normalisation, which makes the mean of any group 0."""
    return scored.extra.get(RAW_REWARD, scored.reward)


def choose_recorded(groups: Sequence[Group], count: int) -> frozenset[Key]:
    """At most `count` samples whose tokens are recorded, from the lowest reward to the highest; of groups with a signal, if any has one."""
    varied = [s for g in groups if len({s.reward for s in g.samples}) > 1 for s in g.samples]
    pool = varied or [s for g in groups for s in g.samples]
    ranked = sorted(pool, key=lambda s: (s.reward is not None, s.reward or 0.0, s.sample.key))
    count = min(count, len(ranked))
    return frozenset(ranked[i * (len(ranked) - 1) // max(count - 1, 1)].sample.key for i in range(count))


def name_split(name: str) -> str:
    """The split of the samples of an evaluation; name: of the set, empty for data.test."""
    return f"{SET_SPLIT}{name}" if name else "test"


def build_sample_row(
    scored: ScoredSample, answer: Any, advantage: float | None, decode: Callable[[Sequence[int]], str], split: str
) -> dict[str, Any]:
    """One line of samples.jsonl, as report/folder.py describes it."""
    sample = scored.sample
    return {
        "split": split,
        "key": list(sample.key),
        "prompt": decode(sample.prompt),
        "completion": sample.text,
        **({} if sample.mask.all() else {"turns": [{"by": str(by), "text": decode(ids)} for by, ids in split_turns(sample)]}),
        "answer": answer,
        "reward": get_raw_reward(scored),
        "rewards": dict(scored.components),
        "extra": {name: value for name, value in scored.extra.items() if name != RAW_REWARD},
        "advantage": advantage,
        "stop": str(sample.stop),
        "version": int(sample.versions[0]) if len(sample.versions) else None,
    }


def build_token_lists(sample: Sample, split_text: Callable[[Sequence[int]], list[str]], computed: Tensor | None) -> dict[str, list[Any]]:
    """The tokens of a sample for its row. computed [2, L]: log-probs and entropies of the trainer; None: there are none."""
    counts = sample.mask.tolist()
    logprobs, entropies = ([None] * len(counts),) * 2 if computed is None else computed.tolist()

    def select(values: list[Any]) -> list[Any]:
        return [value if written else None for value, written in zip(values, counts, strict=True)]

    return {
        "ids": sample.tokens.tolist(),
        "text": split_text(sample.tokens.tolist()),
        "rollout_logprobs": select(sample.rollout_logprobs.tolist()),
        "logprobs": select(logprobs),
        "entropies": select(entropies),
    }
