"""Held-out problems: greedy accuracy, or pass@k where k samples a problem are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.metrics import Mean, Metrics, mean_of, metric_values
from rlkit.rollout import records
from rlkit.rollout.collector import PromptRequest, Sampler
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sampling, Stop

RIGHT = 0.5  # a score of at least so much counts as a right answer


@dataclass
class Evaluation:
    """The same problems each time, shared among the ranks."""

    sampler: Sampler
    prompts: Sequence[PromptRequest]
    ranks: Ranks
    samples: int
    sampling: Sampling  # greedy for one sample a problem
    graded_by: str  # the reward that says whether an answer is right

    def run(self) -> tuple[dict[str, float], list[Group]] | None:
        """Metrics over all ranks, and this rank's groups; None where this rank was asked to stop."""
        numbered = list(enumerate(self.prompts))
        groups = self.sampler.groups(self.ranks.shard(numbered), self.samples, self.sampling)
        if self.ranks.any_rank(groups is None) or groups is None:
            return None
        groups = groups if self.ranks.is_tp_leader else []
        return metric_values(self.ranks.merge_metrics(self._metrics(groups))), groups

    def _metrics(self, groups: list[Group]) -> Metrics:
        scored = [s for group in groups for s in group.samples]
        metrics: Metrics = {
            "eval/accuracy": mean_of(float(right) for s in scored if (right := self._right(s.components)) is not None),
            "eval/reward": mean_of(reward for s in scored if (reward := records.plain(s)) is not None),
            "eval/completions/mean_length": mean_of(len(s.sample.tokens) for s in scored),
            "eval/completions/clipped_ratio": mean_of(float(s.sample.stop is Stop.LENGTH) for s in scored),
        }
        if self.samples > 1:
            metrics[f"eval/pass@{self.samples}"] = self._pass(groups)
        return metrics

    def _pass(self, groups: list[Group]) -> Mean:
        """A problem is passed where any of its k samples is right.

        What failed to be graded is not wrong: a problem of which fewer than k samples are graded is left out.
        """
        graded = [[right for s in group.samples if (right := self._right(s.components)) is not None] for group in groups]
        return mean_of(float(any(its)) for its in graded if len(its) == self.samples)

    def _right(self, parts: Mapping[str, float | None]) -> bool | None:
        value = parts.get(self.graded_by)
        return None if value is None else value >= RIGHT
