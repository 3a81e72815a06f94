"""The step of every online algorithm: sample, score, compute advantages, update."""

from __future__ import annotations

from collections.abc import Sequence
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
    evaluations: Sequence[Evaluation]  # of data.test, and of each set
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
        return bool(self.evaluations)

    def evaluate(self, step: int, every_set: bool) -> dict[str, float]:
        """Accuracy on held-out problems; their completions are written to samples.jsonl."""
        row: dict[str, float] = {}
        for evaluation in self.evaluations:
            if not (every_set or (evaluation.every and step % evaluation.every == 0)):
                continue
            with self.placement.rollout(), self.timer("evaluation"):
                result = evaluation.run()
            if result is None:
                raise Stopped
            metrics, groups = result
            row |= metrics | self.report.write_evaluation(step, evaluation, groups)
        return row

    @property
    def asks_to_stop(self) -> bool:
        return self.report.opinion is not None and self.report.opinion.asks_to_stop

    def state(self) -> dict[str, Any]:
        rewards = self.collector.sampler.rewards.state()
        opinion = self.report.opinion.state() if self.report.opinion else None
        algorithm = asdict(self.algorithm_state)
        return {"collector": self.collector.state(), "rewards": rewards, "algorithm": algorithm, "second_opinion": opinion}

    def load(self, state: dict[str, Any], step: int) -> None:
        self.collector.load(state["collector"])
        self.collector.sampler.rewards.restore(state["rewards"])
        self.algorithm_state = type(self.algorithm_state)(**state["algorithm"])
        if self.report.opinion and state.get("second_opinion"):
            self.report.opinion.load(state["second_opinion"])
        self.placement.version = step
