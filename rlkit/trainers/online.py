"""The step of every online algorithm: sample, score, compute advantages, update."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlkit.algorithms import State
from rlkit.engines.placement import Placement
from rlkit.errors import Stopped
from rlkit.rollout.collector import Collector
from rlkit.rollout.evaluation import Evaluation
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import StepResult
from rlkit.trainers.online_report import OnlineReport, StepRecord
from rlkit.updates.collate import collate
from rlkit.updates.online_update import OnlineUpdater
from rlkit.updates.optimizer_step import UpdateCount


@dataclass
class OnlineTrainer:
    """Rollouts by the policy itself, and the updates on them."""

    placement: Placement
    collector: Collector
    evaluation: Evaluation | None
    updater: OnlineUpdater
    algorithm_state: State
    report: OnlineReport
    timer: PhaseTimer
    ranks: Ranks
    measure: str = "accuracy"

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """One rollout batch and the updates on it."""
        self.collector.sampler.rewards.finished_steps = number - 1
        with self.placement.rollout(), self.timer("rollout"):
            rollout = self.collector.take()
        if rollout is None:
            raise Stopped  # before the first optimizer step: this step is abandoned
        updater, version = self.updater, self.placement.version
        with self.placement.train():
            with self.timer("observe"):
                groups, batch = collate(
                    rollout.groups,
                    self.ranks,
                    updater.minibatches,
                    version,
                    self.collector.max_lag,
                    self.collector.mask_truncated_completions,
                )
                updater.recorder.start(self.report.choose_recorded(number, groups))
                signals, observed = updater.observe(batch)
                credit, self.algorithm_state, credited = updater.algorithm.compute_advantages(
                    batch, signals, self.algorithm_state, self.ranks
                )
            with self.timer("update"):
                updated, count_after = updater.update(batch, signals, credit, count)
        self.placement.version = number
        record = StepRecord(number, rollout, groups, batch, credit, observed, credited, updated, count)
        row, tokens = self.report.write_step(record)
        return StepResult(row, count_after, tokens)

    @property
    def tokens_per_micro_batch(self) -> int:
        return self.updater.tokens_per_micro_batch

    @property
    def evaluates(self) -> bool:
        return self.evaluation is not None

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy on held-out problems; their completions are written to samples.jsonl."""
        assert self.evaluation is not None
        with self.placement.rollout(), self.timer("evaluation"):
            result = self.evaluation.run()
        if result is None:
            raise Stopped
        row, groups = result
        self.report.write_evaluation(step, groups)
        return row

    def state(self) -> dict[str, Any]:
        rewards = self.collector.sampler.rewards.state()
        return {"collector": self.collector.state(), "rewards": rewards, "algorithm": asdict(self.algorithm_state)}

    def load(self, state: dict[str, Any], step: int) -> None:
        self.collector.load(state["collector"])
        self.collector.sampler.rewards.restore(state["rewards"])
        self.algorithm_state = type(self.algorithm_state)(**state["algorithm"])
        self.placement.version = step
