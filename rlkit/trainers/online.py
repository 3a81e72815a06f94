"""The step of every online algorithm: sample, score, give credit, learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from rlkit.algorithms import State
from rlkit.engines.logprob_check import COMPARED
from rlkit.engines.placement import Colocated
from rlkit.errors import Stopped
from rlkit.metrics import metric_values
from rlkit.profiling.roofline import PromptLengths, Roofline, compute_ratios
from rlkit.report import Report
from rlkit.rollout import records
from rlkit.rollout.collector import Collector, RolloutBatch
from rlkit.rollout.evaluation import Evaluation
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import StepResult
from rlkit.types import Batch, Credit, Group, Sample
from rlkit.updates.collate import collate
from rlkit.updates.online_update import OnlineUpdater, UpdateCount, observe, rows_with_signal, update

ALIKE = "frac_reward_zero_std"  # as in TRL: the share of groups whose rewards are all the same


@dataclass
class OnlineTrainer:
    """Rollouts by the policy itself, and what they are learnt by."""

    placement: Colocated
    collector: Collector
    evaluation: Evaluation | None
    learning: OnlineUpdater
    remembered: State  # by the algorithm
    report: Report
    clock: PhaseTimer
    ranks: Ranks
    decode: Callable[[Sequence[int]], str]
    floors: Roofline | None = None
    measure: str = "accuracy"

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """One rollout batch and the updates on it."""
        with self.placement.rollout(), self.clock("rollout"):
            taken = self.collector.take()
        if taken is None:
            raise Stopped  # before the first optimizer step: this step is abandoned
        learning = self.learning
        with self.placement.train():
            with self.clock("observe"):
                groups, batch = collate(taken.groups, self.ranks, learning.minibatches, self.placement.version, self.collector.max_lag)
                signals, seen = observe(learning, batch)
                credit, self.remembered, given = learning.algorithm.compute_advantages(batch, signals, self.remembered, self.ranks)
            with self.clock("update"):
                learned, after = update(learning, batch, signals, credit, count)
        self.placement.version = number
        left_out = sorted((g for part in self.ranks.gather(taken.left_out) for g in part), key=lambda g: g.index)
        self._write_samples(number, groups, left_out, batch, credit)
        judged = [*groups, *left_out]
        if self.collector.max_refills is not None:  # the algorithm saw only groups with a signal
            given = {name: metric for name, metric in given.items() if name != ALIKE}
        row = metric_values(self.ranks.merge_metrics(self.collector.sampler.judge.pop_metrics()))
        row |= join_metrics(  # an entry that a reward names like one of these does not hide it
            records.of_groups(judged),
            metric_values(seen),
            metric_values(given),
            metric_values(learned),
            count_unused_prompts(self.collector.prompts.state_dict()),
            self.placement.memory(),
            self._refilled(number, len(groups), len(left_out), taken.refills) if self.collector.max_refills is not None else {},
        )
        self._note_uncompared(number, row)
        scored = [s.sample for g in judged for s in g.samples]
        row |= self._floors(taken, batch, credit, count)
        row["throughput/tokens_per_second"] = sum(len(s.tokens) for s in scored) / self.clock.seconds
        return StepResult(row, after, sum(len(s.prompt) + len(s.tokens) for s in scored))

    @property
    def tokens_per_micro_batch(self) -> int:
        return self.learning.tokens_per_micro_batch

    @property
    def evaluates(self) -> bool:
        return self.evaluation is not None

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy on held-out problems; their completions go into samples.jsonl."""
        assert self.evaluation is not None
        with self.placement.rollout(), self.clock("evaluation"):
            result = self.evaluation.run()
        if result is None:
            raise Stopped
        row, mine = result
        everyone = sorted((g for part in self.ranks.gather(mine) for g in part), key=lambda g: g.index)
        self.report.log_samples(step, [records.of_sample(s, None, self.decode, "test") for g in everyone for s in g.samples])
        self.collector.sampler.judge.pop_metrics()  # the reward statistics of a step are of its own samples
        return row

    def state(self) -> dict[str, Any]:
        judge = self.collector.sampler.judge
        return {"stream": self.collector.state(), "judge": judge.state(), "algorithm": asdict(self.remembered)}

    def load(self, state: dict[str, Any], step: int) -> None:
        self.collector.load(state["stream"])
        self.collector.sampler.judge.restore(state["judge"])
        self.remembered = type(self.remembered)(**state["algorithm"])
        self.placement.version = step

    def _refilled(self, step: int, kept: int, left_out: int, refills: int) -> dict[str, float]:
        """What became of the groups of a step that wants a signal in each; says so where they are too few."""
        wanted = self.collector.prompts_per_step
        if kept < wanted:
            what = f"learns from the {kept}" if kept else "learns nothing"
            self.report.note(
                f"step {step}: {kept} of {wanted} groups have a signal after {refills} refills (algorithm.max_refills); it {what}"
            )
        surplus = int(self.ranks.all_reduce_sum(torch.tensor(len(self.collector.surplus))))
        return {
            "groups/kept": kept,
            "groups/left_out": left_out,
            "groups/refills": refills,
            "groups/surplus": surplus,
            ALIKE: left_out / max(kept + left_out, 1),
        }

    def _note_uncompared(self, step: int, row: Mapping[str, float]) -> None:
        """Says so where a step had nothing by which the sampler's weights could be checked."""
        if row.get(COMPARED) == 0:
            self.report.note(
                f"step {step}: all its tokens were sampled by older weights, so log-probs of sampler and trainer were not compared"
            )

    def _floors(self, taken: RolloutBatch, batch: Batch, credit: Credit, count: UpdateCount) -> dict[str, float]:
        """How far the phases of this step were from the least that they could take, evaluation aside."""
        if self.floors is None:
            return {}
        floors, learning, needs, clock = self.floors, self.learning, self.learning.needs, self.clock.metrics()
        active = rows_with_signal(learning, credit, range(len(batch.samples)))
        everything, learned = lengths_by_prompt(batch.samples), lengths_by_prompt([batch.samples[i] for i in active]) * learning.passes
        policy, critic = count.updates >= learning.policy_waits, learning.critic is not None
        least = {
            "sync": floors.sync(self.placement.parked, self.placement.sent),
            "rollout": floors.rollout([[request_lengths(g) for g in groups] for groups in taken.rounds]),
            "observe": floors.observe(everything, needs.old_logprobs + needs.reference, critic),
            "update": floors.update(learned, policy, critic),
        }
        return compute_ratios(least, clock) | {"throughput/mfu": floors.compute_mfu(learned if policy else [], clock["time/update"])}

    def _write_samples(self, step: int, groups: list[Group], left_out: list[Group], batch: Batch, credit: Credit) -> None:
        """The step's samples, with their advantages where they were learned from."""
        counts = batch.mask.sum(-1).clamp(min=1)
        mine = (credit.advantages.sum(-1) / counts).double()  # [B], the mean over a sample's tokens
        unused = [s for g in left_out for s in g.samples]
        advantages = [*self.ranks.gather_by_index(mine, batch.index, batch.size).tolist(), *[None] * len(unused)]
        scored = [s for g in groups for s in g.samples] + unused
        decode = cache(self.decode)  # of a group's prompt once
        self.report.log_samples(step, [records.of_sample(s, a, decode, "train") for s, a in zip(scored, advantages, strict=True)])


def join_metrics(*parts: Mapping[str, float]) -> dict[str, float]:
    """One row of all. Raises ValueError where a name stands in two: which of them holds would depend on their order."""
    row: dict[str, float] = {}
    for part in parts:
        if twice := row.keys() & part.keys():
            raise ValueError(f"metrics are made in two places: {', '.join(sorted(twice))}")
        row |= part
    return row


def count_unused_prompts(stream: dict[str, Any]) -> dict[str, float]:
    """Rows so far that gave nothing to learn from, or were cut."""
    return {f"prompts/{name}": float(stream[name]) for name in ("too_long", "bad_row", "cut")}


def lengths_by_prompt(samples: Sequence[Sample]) -> list[PromptLengths]:
    """Tokens of prompts, and of each completion of theirs."""
    found: dict[tuple[int, ...], list[int]] = {}
    for sample in samples:
        found.setdefault(sample.prompt, []).append(len(sample.tokens))
    return [(len(prompt), lengths) for prompt, lengths in found.items()]


def request_lengths(group: Group) -> PromptLengths:
    """Tokens of its prompt, and of each completion."""
    every = [*group.samples, *([group.greedy] if group.greedy else [])]
    return len(every[0].sample.prompt), [len(s.sample.tokens) for s in every]
