"""From the scores of several rewards to one reward a sample, and from outcomes to numbers worth watching. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from rlkit.rewarding.outcome import Outcome, OutcomeKind, Verdict
from rlkit.rewarding.spec import RewardSettings, RewardSpec

Parts = Mapping[str, Outcome]  # by reward name


def verdicts(
    specs: Sequence[RewardSpec], settings: RewardSettings, parts: Mapping[Hashable, Parts], groups: Mapping[Hashable, Hashable]
) -> dict[Hashable, Verdict]:
    """One verdict a sample, in the order of `parts`. groups: the group of each sample, within which scores are normalised."""
    values = {key: {name: outcome.value for name, outcome in its.items()} for key, its in parts.items()}
    if settings.normalise == "each":
        for spec in specs:
            for key, value in standardised({key: its[spec.name] for key, its in values.items()}, groups).items():
                values[key][spec.name] = value
    rewards = {key: combined(specs, settings, its, parts[key]) for key, its in values.items()}
    if settings.normalise == "sum":
        rewards = standardised(rewards, groups)
    return {key: Verdict(rewards[key], its, _entries(its)) for key, its in parts.items()}


def combined(specs: Sequence[RewardSpec], settings: RewardSettings, values: Mapping[str, float | None], parts: Parts) -> float | None:
    """One number from the values of one sample; None where a reward that weighs failed, or where none applies."""
    if any(parts[spec.name].kind.failed for spec in specs if spec.weight != 0 or spec.gate):
        return None
    scored = [(spec, value) for spec in specs if (value := values[spec.name]) is not None and (spec.weight != 0 or spec.gate)]
    return _COMBINE[settings.combine](scored, parts) if scored else None


def _sum(scored: Sequence[tuple[RewardSpec, float]], parts: Parts) -> float:
    return math.fsum(spec.weight * value for spec, value in scored)


def _product(scored: Sequence[tuple[RewardSpec, float]], parts: Parts) -> float:
    return math.prod(spec.weight * value for spec, value in scored)


def _gate(scored: Sequence[tuple[RewardSpec, float]], parts: Parts) -> float:
    # The gate asks the score as it was given: after normalising, half of any group is below 0.
    closed = any((parts[spec.name].value or 0.0) <= 0 for spec, _ in scored if spec.gate)
    return 0.0 if closed else _sum(scored, parts)


_COMBINE: dict[str, Callable[[Sequence[tuple[RewardSpec, float]], Parts], float]] = {"sum": _sum, "product": _product, "gate": _gate}


def standardised(values: Mapping[Hashable, float | None], groups: Mapping[Hashable, Hashable]) -> dict[Hashable, float | None]:
    """Mean 0 and (population) deviation 1 within each group, None left out and left as it is. A group of equal values becomes 0."""
    members: dict[Hashable, list[Hashable]] = defaultdict(list)
    for key, value in values.items():
        if value is not None:
            members[groups[key]].append(key)
    result: dict[Hashable, float | None] = dict.fromkeys(values)
    for keys in members.values():
        given = {key: value for key in keys if (value := values[key]) is not None}
        mean = math.fsum(given.values()) / len(given)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in given.values()) / len(given))
        # relative to the size of the values: equal values leave a rounding error of that size, which is no signal
        flat = deviation <= 1e-12 * max(map(abs, given.values()))
        result |= {key: 0.0 if flat else (value - mean) / deviation for key, value in given.items()}
    return result


def _entries(parts: Parts) -> dict[str, float]:
    return {f"{name}/{entry}": value for name, outcome in parts.items() for entry, value in outcome.metrics.items()}


def stats(specs: Sequence[RewardSpec], outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    """Means, rates and latencies of these outcomes, by metric name. Seconds are named time/..., for they depend on the machine."""
    numbers: dict[str, float] = {}
    for spec in specs:
        given = outcomes[spec.name]
        if not given:
            continue
        counts = {kind: sum(outcome.kind is kind for outcome in given) for kind in OutcomeKind}
        scores = [outcome.value for outcome in given if outcome.value is not None]
        if scores:
            mean = math.fsum(scores) / len(scores)
            numbers[f"rewards/{spec.name}/mean"] = mean
            numbers[f"rewards/{spec.name}/std"] = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
        numbers[f"rewards/{spec.name}/failure_rate"] = sum(outcome.kind.failed for outcome in given) / len(given)
        numbers[f"rewards/{spec.name}/timeout_rate"] = counts[OutcomeKind.TIMEOUT] / len(given)
        numbers[f"rewards/{spec.name}/not_applicable_rate"] = counts[OutcomeKind.NOT_APPLICABLE] / len(given)
        for entry, values in _by_entry(given).items():
            numbers[f"rewards/{spec.name}/{entry}"] = math.fsum(values) / len(values)
    return numbers | _latencies([outcome.seconds for given in outcomes.values() for outcome in given])


def _by_entry(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for entry, value in outcome.metrics.items():
            values[entry].append(value)
    return values


def _latencies(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {f"time/reward_p{percent}": ordered[math.ceil(percent / 100 * len(ordered)) - 1] for percent in (50, 99)}
