"""Combines the scores of several rewards into one reward per sample, and makes metrics of outcomes. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from rlkit.errors import UserError
from rlkit.metrics import Metrics, Quantile, mean_of
from rlkit.rewarding.outcome import RAW_REWARD, Outcome, OutcomeKind, SampleReward
from rlkit.rewarding.scores import LARGEST_SCORE
from rlkit.rewarding.spec import RewardSettings, RewardSpec

Rewards = Mapping[str, RewardSpec]  # by name
Components = Mapping[str, Outcome]  # by name of the reward
Scored = Sequence[tuple[RewardSpec, float]]
FLAT = 1e-12  # a deviation below this share of the largest value is rounding error of equal values, not a signal


def combine_rewards(
    rewards: Rewards, settings: RewardSettings, components: Mapping[Hashable, Components], groups: Mapping[Hashable, Hashable]
) -> dict[Hashable, SampleReward]:
    """One SampleReward per sample, in the order of `components`. groups: the group of each sample, within which scores are normalised.

    Normalised rewards have mean 0 in every step, so the reward before is returned too, as a metric.
    """
    values = {key: {name: outcome.value for name, outcome in own.items()} for key, own in components.items()}
    combined = raw = {key: combine_sample(rewards, settings, own, components[key]) for key, own in values.items()}
    if settings.normalise == "each":
        for name in rewards:
            for key, value in standardise_scores({key: own[name] for key, own in values.items()}, groups).items():
                values[key][name] = value
        combined = {key: combine_sample(rewards, settings, own, components[key]) for key, own in values.items()}
    if settings.normalise == "sum":
        combined = standardise_scores(raw, groups)
    raw_metrics = {} if settings.normalise == "none" else {key: {RAW_REWARD: reward} for key, reward in raw.items() if reward is not None}
    return {key: SampleReward(combined[key], own, _prefix_entries(own) | raw_metrics.get(key, {})) for key, own in components.items()}


def combine_sample(rewards: Rewards, settings: RewardSettings, values: Mapping[str, float | None], components: Components) -> float | None:
    """The reward of one sample from its values by name. None where a reward that counts failed, or where none applies; 0 of no rewards
    that count.

    Raises UserError where it is too large to compute with.
    """
    rewards = {name: spec for name, spec in rewards.items() if components[name].kind is not OutcomeKind.SKIPPED}
    if not any(spec.counts for spec in rewards.values()):
        return 0.0
    if any(components[name].kind.failed for name, spec in rewards.items() if spec.counts):
        return None
    scored = [(spec, value) for name, spec in rewards.items() if (value := values[name]) is not None and spec.counts]
    # A gate looks at the original score: after normalisation half of a group is below 0.
    closed = any((components[name].value or 0.0) <= 0 for name, spec in rewards.items() if spec.gate and values[name] is not None)
    if not scored:
        return None
    try:
        reward = _COMBINE[settings.combine](scored, closed)
    except OverflowError:  # of fsum
        reward = math.inf
    if not abs(reward) <= LARGEST_SCORE:
        parts = ", ".join(f"{spec.weight:g} x {value:g}" for spec, value in scored)
        raise UserError(f"rewarding.combine={settings.combine} of {parts} is larger than {LARGEST_SCORE:g}; make the weights smaller")
    return reward


def _combine_sum(scored: Scored, closed: bool) -> float:
    return math.fsum(spec.weight * value for spec, value in scored)


def _combine_product(scored: Scored, closed: bool) -> float:
    return math.prod(spec.weight * value for spec, value in scored)


def _combine_gate(scored: Scored, closed: bool) -> float:
    return 0.0 if closed else _combine_sum(scored, closed)


_COMBINE: dict[str, Callable[[Scored, bool], float]] = {"sum": _combine_sum, "product": _combine_product, "gate": _combine_gate}


def standardise_scores(values: Mapping[Hashable, float | None], groups: Mapping[Hashable, Hashable]) -> dict[Hashable, float | None]:
    """Mean 0 and (population) standard deviation 1 within each group. None is ignored and stays None. Equal values become 0."""
    members: dict[Hashable, list[Hashable]] = defaultdict(list)
    for key, value in values.items():
        if value is not None:
            members[groups[key]].append(key)
    result: dict[Hashable, float | None] = dict.fromkeys(values)
    for keys in members.values():
        known = {key: value for key in keys if (value := values[key]) is not None}
        mean = math.fsum(known.values()) / len(known)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known.values()) / len(known))
        flat = deviation <= FLAT * max(map(abs, known.values()))
        result |= {key: 0.0 if flat else (value - mean) / deviation for key, value in known.items()}
    return result


def _prefix_entries(components: Components) -> dict[str, float]:
    return {f"{name}/{entry}": value for name, outcome in components.items() for entry, value in outcome.metrics.items()}


def compute_metrics(outcomes: Mapping[str, Sequence[Outcome]]) -> Metrics:
    """Failure rates, latencies and the other entries that functions returned. outcomes: by reward name.

    Seconds depend on the machine, so their names begin with time/.
    """
    metrics: Metrics = {}
    for name, own in outcomes.items():
        if not own:
            continue
        metrics[f"rewards/{name}/failure_rate"] = mean_of(outcome.kind.failed for outcome in own)
        metrics[f"rewards/{name}/timeout_rate"] = mean_of(outcome.kind is OutcomeKind.TIMEOUT for outcome in own)
        metrics[f"rewards/{name}/not_applicable_rate"] = mean_of(outcome.kind is OutcomeKind.NOT_APPLICABLE for outcome in own)
        for entry in dict.fromkeys(entry for outcome in own for entry in outcome.metrics):
            metrics[f"rewards/{name}/{entry}"] = mean_of(outcome.metrics[entry] for outcome in own if entry in outcome.metrics)
    seconds = tuple(outcome.seconds for own in outcomes.values() for outcome in own)
    return metrics | ({f"time/reward_p{percent}": Quantile(seconds, percent) for percent in (50, 99)} if seconds else {})
