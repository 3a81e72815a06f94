"""From the scores of several rewards to one reward a sample, and from outcomes to numbers worth watching. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from rlkit.metrics import Metrics, Quantile, mean_of
from rlkit.rewarding.outcome import PLAIN, Outcome, OutcomeKind, Verdict
from rlkit.rewarding.spec import RewardSettings, RewardSpec

Parts = Mapping[str, Outcome]  # by reward name


def verdicts(
    specs: Sequence[RewardSpec], settings: RewardSettings, parts: Mapping[Hashable, Parts], groups: Mapping[Hashable, Hashable]
) -> dict[Hashable, Verdict]:
    """One verdict a sample, in the order of `parts`. groups: the group of each sample, within which scores are normalised.

    Normalised rewards are 0 in the mean of any step: what they were before goes with them, for people to read.
    """
    values = {key: {name: outcome.value for name, outcome in its.items()} for key, its in parts.items()}
    rewards = plain = {key: combined(specs, settings, its, parts[key]) for key, its in values.items()}
    if settings.normalise == "each":
        for spec in specs:
            for key, value in standardised({key: its[spec.name] for key, its in values.items()}, groups).items():
                values[key][spec.name] = value
        rewards = {key: combined(specs, settings, its, parts[key]) for key, its in values.items()}
    if settings.normalise == "sum":
        rewards = standardised(plain, groups)
    before = {} if settings.normalise == "none" else {key: {PLAIN: reward} for key, reward in plain.items() if reward is not None}
    return {key: Verdict(rewards[key], its, _entries(its) | before.get(key, {})) for key, its in parts.items()}


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


def stats(specs: Sequence[RewardSpec], outcomes: Mapping[str, Sequence[Outcome]]) -> Metrics:
    """Rates and latencies of these outcomes, and what functions returned beside scores. Seconds, which are the machine's, are time/... ."""
    found: Metrics = {}
    for spec in specs:
        given = outcomes[spec.name]
        if not given:
            continue
        found[f"rewards/{spec.name}/failure_rate"] = mean_of(outcome.kind.failed for outcome in given)
        found[f"rewards/{spec.name}/timeout_rate"] = mean_of(outcome.kind is OutcomeKind.TIMEOUT for outcome in given)
        found[f"rewards/{spec.name}/not_applicable_rate"] = mean_of(outcome.kind is OutcomeKind.NOT_APPLICABLE for outcome in given)
        for entry in dict.fromkeys(entry for outcome in given for entry in outcome.metrics):
            found[f"rewards/{spec.name}/{entry}"] = mean_of(outcome.metrics[entry] for outcome in given if entry in outcome.metrics)
    seconds = tuple(outcome.seconds for given in outcomes.values() for outcome in given)
    return found | ({f"time/reward_p{percent}": Quantile(seconds, percent) for percent in (50, 99)} if seconds else {})
