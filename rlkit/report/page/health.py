"""Notes on metrics outside their healthy range. The ranges are those of rlkit/docs/metrics.md, word for word; a test compares them."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.report.page.curves import Curves

RECENT = 10  # rows that a note speaks of
TREND_ROWS = 20  # before them nothing is said of a trend
SIGMAS = 3.0  # of the means of its two ends, before a trend is called one


@dataclass(frozen=True)
class HealthRule:
    """name: of the metric, with * for a name of the user's. healthy: as the page says it. is_healthy: of all values of a run."""

    name: str
    healthy: str
    is_healthy: Callable[[Sequence[float]], bool]
    advice: str


def get_recent(values: Sequence[float]) -> float:
    """The median of the last rows."""
    return statistics.median(values[-RECENT:])


def require_below(limit: float) -> Callable[[Sequence[float]], bool]:
    return lambda values: get_recent(values) < limit


def require_above(limit: float) -> Callable[[Sequence[float]], bool]:
    return lambda values: get_recent(values) > limit


def require_between(low: float, high: float) -> Callable[[Sequence[float]], bool]:
    return lambda values: low <= get_recent(values) <= high


def stays_zero(values: Sequence[float]) -> bool:
    return max(values[-RECENT:]) == 0


def is_steady(values: Sequence[float]) -> bool:
    return max(values[-RECENT:]) <= 10 * statistics.median(values)


def is_rising(values: Sequence[float]) -> bool:
    """False where the last fifth is below the first by more than chance explains."""
    if len(values) < TREND_ROWS:
        return True
    part = len(values) // 5
    first, last = values[:part], values[-part:]
    error = ((statistics.variance(first) + statistics.variance(last)) / part) ** 0.5
    return bool(statistics.mean(last) >= statistics.mean(first) - SIGMAS * error)


NO_SIGNAL = "Most groups have equal rewards and teach nothing: easier or harder prompts, or algorithm.dynamic_sampling=true."
CUT = "Completions are cut before they end: raise max_completion_tokens, or reward shorter ones."
CLIPPED = "Updates go far from the policy that sampled: a lower optim.lr, or fewer updates_per_step."
MISMATCH = "Sampler and trainer disagree on the same tokens: see the log-prob check in troubleshooting.md."
FAILURES = "A reward raised or took too long; its samples are left out of the loss. run.log names the error."
FOREIGN = "The teacher does not know what the policy writes: look at its end token and its chat template."
GAMED = "A second opinion does not confirm what the reward pays for: the warning in run.log shows samples (eval.second_opinion)."
ROWS = "Rows of the data could not be read; the run skips them (data.on_bad_row)."
FORGOTTEN = "It falls: a lower optim.lr or a higher algorithm.kl_coef, and read samples of the last steps."

RULES = (
    HealthRule("frac_reward_zero_std", "below 0.8", require_below(0.8), NO_SIGNAL),
    HealthRule("reward", "rises", is_rising, FORGOTTEN),
    HealthRule("reward_std", "above 0", require_above(0), NO_SIGNAL),
    HealthRule("rewards_failed", "0", stays_zero, FAILURES),
    HealthRule("second_opinion/alarms", "0", stays_zero, GAMED),
    HealthRule("rewards/*/failure_rate", "0", stays_zero, FAILURES),
    HealthRule("rewards/*/timeout_rate", "0", stays_zero, FAILURES),
    HealthRule("completions/min_length", "above 0", require_above(0), "Some completions are empty: look at samples of the last step."),
    HealthRule("completions/clipped_ratio", "below 0.1", require_below(0.1), CUT),
    HealthRule("prompts/bad_row", "0", stays_zero, ROWS),
    HealthRule("grad_norm", "steady, below 10 x its median", is_steady, "The gradient jumps: a lower optim.lr, or optim.max_grad_norm."),
    HealthRule("updates_skipped", "0", stays_zero, "Gradients were not finite: a lower optim.lr, and look at the samples of that step."),
    HealthRule(
        "entropy", "falls slowly, above 0.05", require_above(0.05), "The policy hardly explores: algorithm.entropy_coef, or a lower lr."
    ),
    HealthRule("kl", "below 0.1", require_below(0.1), "The policy is far from its start: a higher algorithm.kl_coef, or a lower lr."),
    HealthRule("clip_ratio/low_mean", "below 0.1", require_below(0.1), CLIPPED),
    HealthRule("clip_ratio/high_mean", "below 0.1", require_below(0.1), CLIPPED),
    HealthRule(
        "sampling/sampling_logp_difference/mean", "below 1e-4 (float32), 0.03 (bfloat16)", require_below(0.03), MISMATCH
    ),  # the wider of the two: the type is not known here
    HealthRule("sampling/sampling_logp_difference/max", "below 1", require_below(1), MISMATCH),
    HealthRule("sampling/compared_tokens", "above 0", require_above(0), MISMATCH),
    HealthRule("sampling/importance_sampling_ratio/mean", "0.98 to 1.02", require_between(0.98, 1.02), MISMATCH),
    HealthRule("sampling/effective_sample_size", "above 0.9", require_above(0.9), MISMATCH),
    HealthRule("updates_without_signal", "0", stays_zero, NO_SIGNAL),
    HealthRule("teacher/clip_ratio", "below 0.01", require_below(0.01), FOREIGN),
    HealthRule("critic/clip_ratio", "below 0.2", require_below(0.2), "The values move fast: a lower learning rate of the critic."),
    HealthRule("rewards/accuracies", "above 0.5, rises", require_above(0.5), "The model ranks fewer than half of the rows right."),
    HealthRule("rows/bad_row", "0", stays_zero, ROWS),
    HealthRule("eval/accuracy", "rises", is_rising, FORGOTTEN),
    HealthRule("eval/reward", "rises", is_rising, FORGOTTEN),
    HealthRule("eval/completions/clipped_ratio", "below 0.1", require_below(0.1), CUT),
    HealthRule("eval/*/accuracy", "rises", is_rising, FORGOTTEN),
    HealthRule("eval/*/completions/clipped_ratio", "below 0.1", require_below(0.1), CUT),
)


def find_health_notes(curves: Curves) -> list[dict[str, Any]]:
    """{metric, value, healthy, advice} for each metric outside its range; value: the median of the last rows, or their largest."""
    notes = []
    for rule in RULES:
        for name in fnmatch.filter(curves.columns, rule.name):
            values = curves.get(name)
            if values and not rule.is_healthy(values):
                value = max(values[-RECENT:]) if rule.is_healthy in (stays_zero, is_steady) else get_recent(values)
                notes.append({"metric": name, "value": value, "healthy": rule.healthy, "advice": rule.advice})
    return notes
