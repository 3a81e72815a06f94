"""Evaluation on held-out problems: greedy accuracy, or pass@k with k samples a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.metrics import Mean, Metrics, describe_accuracy, mean_of, metric_values
from rlkit.rollout import records
from rlkit.rollout.open_groups import PromptRequest
from rlkit.rollout.sampler import Sampler
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sampling, Stop

RIGHT = 0.5  # a score of at least this is a right answer


@dataclass
class Evaluation:
    """The same problems each time, shared among the ranks."""

    sampler: Sampler
    prompts: Sequence[PromptRequest]
    ranks: Ranks
    samples: int
    sampling: Sampling  # greedy for one sample a problem
    graded_by: str  # the reward that grades an answer

    def run(self) -> tuple[dict[str, float], list[Group]] | None:
        """Metrics over all ranks, of the accuracy its 95 % interval too, and this rank's groups; None where a stop was requested."""
        prompts = list(enumerate(self.prompts))
        groups = self.sampler.sample_groups(self.ranks.shard(prompts), self.samples, self.sampling)
        if self.ranks.any_rank(groups is None) or groups is None:
            return None
        groups = groups if self.ranks.is_tp_leader else []
        merged = self.ranks.merge_metrics(self._compute_metrics(groups))
        accuracy = merged["eval/accuracy"]
        assert isinstance(accuracy, Mean)
        return {**metric_values(merged), **describe_accuracy(accuracy, self.samples)}, groups

    def _compute_metrics(self, groups: list[Group]) -> Metrics:
        scored = [s for group in groups for s in group.samples]
        metrics: Metrics = {
            "eval/accuracy": mean_of(float(right) for s in scored if (right := self._is_right(s.components)) is not None),
            "eval/reward": mean_of(reward for s in scored if (reward := records.get_raw_reward(s)) is not None),
            "eval/completions/mean_length": mean_of(records.count_written_tokens(s.sample) for s in scored),
            "eval/completions/clipped_ratio": mean_of(float(s.sample.stop is Stop.LENGTH) for s in scored),
        }
        if self.samples > 1:
            metrics[f"eval/pass@{self.samples}"] = self._compute_pass_rate(groups)
        return metrics

    def _compute_pass_rate(self, groups: list[Group]) -> Mean:
        """The share of problems of which any of the k samples is right.

        A sample whose grading failed is not wrong: a problem of which fewer than k samples are graded is left out.
        """
        graded = [[right for s in group.samples if (right := self._is_right(s.components)) is not None] for group in groups]
        return mean_of(float(any(grades)) for grades in graded if len(grades) == self.samples)

    def _is_right(self, components: Mapping[str, float | None]) -> bool | None:
        value = components.get(self.graded_by)
        return None if value is None else value >= RIGHT
