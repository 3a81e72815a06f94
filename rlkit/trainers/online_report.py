"""The metrics and samples of a step of an online algorithm: the one place where they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import Tensor

from rlkit.engines.logprob_check import COMPARED
from rlkit.engines.placement import Placement
from rlkit.metrics import Metrics, max_over_mask, mean_over_mask, metric_values
from rlkit.profiling.roofline import PromptLengths, Roofline, compute_ratios
from rlkit.report import Report
from rlkit.rollout import records
from rlkit.rollout.collector import Collector, RolloutBatch, list_samples
from rlkit.rollout.evaluation import Evaluation
from rlkit.rollout.second_opinion import SecondOpinion
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.timer import PhaseTimer
from rlkit.types import Batch, Credit, Group, Key, Sample
from rlkit.updates.online_update import OnlineUpdater, select_rows_with_signal
from rlkit.updates.optimizer_step import UpdateCount

OF_REWARDS = ("reward", "reward_std")  # what a run without rewards that count has not
ALARMS = "second_opinion/alarms"
ZERO_STD = "frac_reward_zero_std"  # as in TRL: the share of groups whose rewards are all the same


@dataclass(frozen=True)
class StepRecord:
    """What a step produced on this rank."""

    number: int
    rollout: RolloutBatch
    groups: list[Group]  # of all ranks, those that were learned from
    batch: Batch
    credit: Credit
    observed: Metrics  # of all ranks, as the next two
    credited: Metrics
    updated: Metrics
    count: UpdateCount  # before the step


@dataclass
class OnlineReport:
    """Writes the samples of steps and evaluations, and returns the metrics of steps."""

    report: Report
    placement: Placement
    collector: Collector
    updater: OnlineUpdater
    timer: PhaseTimer
    ranks: Ranks
    decode: Callable[[Sequence[int]], str]
    split_text: Callable[[Sequence[int]], list[str]]  # of each token
    tokens: int | Literal["all"] = 0  # samples of a step whose tokens are recorded
    dumped: frozenset[int] = frozenset()  # steps of which all are
    roofline: Roofline | None = None
    opinion: SecondOpinion | None = None
    graded_by: str | None = None  # the reward that grades the samples of a step

    def write_step(self, step: StepRecord) -> tuple[dict[str, float], int]:
        """Writes the samples of a step; returns its metrics and its tokens, prompts included. A collective call."""
        left_out = self._gather_groups(step.rollout.left_out)
        everything = [*step.groups, *left_out]
        self._write_samples(step, left_out)
        credited = dict(step.credited)
        if self.collector.max_refills is not None:  # the algorithm gets only groups with a signal
            credited.pop(ZERO_STD, None)
        row = metric_values(self.ranks.merge_metrics(self.collector.sampler.rewards.pop_metrics()))
        summary = records.summarize_groups(everything)
        if not self.collector.sampler.rewards.counts:
            summary = {name: value for name, value in summary.items() if name not in OF_REWARDS}
            credited.pop(ZERO_STD, None)
        row |= join_metrics(  # an entry that a reward names like one of these does not hide it
            summary,
            metric_values(step.observed),
            metric_values(credited),
            metric_values(step.updated),
            count_unused_rows(self.collector.prompts.state_dict()),
            self.placement.memory(),
            self._count_groups(step, len(left_out)),
            self._measure_lag(step.batch),
            self._count_carried(),
            self._ask_second_opinion("training", everything, self.graded_by, ""),
        )
        self._note_uncompared(step.number, row)
        row |= self._compare_with_roofline(step)
        samples = [s.sample for g in everything for s in g.samples]
        row["throughput/tokens_per_second"] = sum(records.count_written_tokens(s) for s in samples) / self.timer.seconds
        return row, sum(len(s.prompt) + len(s.tokens) for s in samples)

    def write_evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> dict[str, float]:
        """Writes the samples of an evaluation; groups: of this rank. Returns what its second opinion found. A collective call."""
        everything, split = self._gather_groups(groups), records.name_split(evaluation.name)
        samples = [(s, g.answer) for g in everything for s in g.samples]
        self.report.log_samples(step, [records.build_sample_row(s, answer, None, self.decode, split) for s, answer in samples])
        self.collector.sampler.rewards.pop_metrics()  # the reward metrics of a step are of its own samples
        return self._ask_second_opinion(evaluation.name or "data.test", everything, evaluation.graded_by, evaluation.prefix)

    def _ask_second_opinion(self, place: str, groups: Sequence[Group], graded_by: str | None, prefix: str) -> dict[str, float]:
        """Metrics with their prefix; warns where the reward seems to be gamed. groups: of all ranks."""
        if self.opinion is None or graded_by is None:
            return {}
        metrics, warnings = self.opinion.observe(place, groups, graded_by)
        for warning in warnings:
            self.report.warn(warning)
        return {**{prefix + name: value for name, value in metrics.items()}, ALARMS: float(self.opinion.alarms)}

    def _gather_groups(self, groups: Sequence[Group]) -> list[Group]:
        """The groups of all ranks, in order."""
        return sorted((g for part in self.ranks.gather(list(groups)) for g in part), key=lambda g: g.index)

    def _count_groups(self, step: StepRecord, left_out: int) -> dict[str, float]:
        """What became of the groups of a step that needs a signal in each; notes where they are too few."""
        if self.collector.max_refills is None:
            return {}
        kept, wanted, refills = len(step.groups), self.collector.prompts_per_step, step.rollout.refills
        if kept < wanted:
            what = f"learns from the {kept}" if kept else "learns nothing"
            self.report.note(
                f"step {step.number}: {kept} of {wanted} groups have a signal after {refills} refills (algorithm.max_refills); it {what}"
            )
        return {
            "groups/kept": kept,
            "groups/left_out": left_out,
            "groups/refills": refills,
            "groups/surplus": len(self.collector.surplus),
            ZERO_STD: left_out / max(kept + left_out, 1),
        }

    def _measure_lag(self, batch: Batch) -> dict[str, float]:
        """Steps that the tokens of a step are older than the policy that learns from them. A collective call, where they can be."""
        if not self.collector.max_lag:
            return {}
        seen: Metrics = {"lag/mean": mean_over_mask(batch.lag, batch.mask), "lag/max": max_over_mask(batch.lag, batch.mask)}
        return metric_values(self.ranks.merge_metrics(seen))

    def _count_carried(self) -> dict[str, float]:
        """What waits for the next step: begun groups, and complete ones that it had no place for."""
        collector = self.collector
        if not collector.carries:
            return {}
        samples = [s for g in collector.open for s in g.samples] + [s for g in collector.surplus for s in list_samples(g)]
        return {
            "carried/groups": float(len(collector.open) + len(collector.surplus)),
            "carried/tokens": float(sum(len(s.tokens) for s in samples)),
        }

    def _note_uncompared(self, step: int, row: Mapping[str, float]) -> None:
        """Notes where nothing in a step showed whether the sampler has the trainer's weights."""
        if row.get(COMPARED) == 0:
            self.report.note(
                f"step {step}: no token that it learns from was sampled by the current weights, so log-probs of sampler and trainer were "
                "not compared"
            )

    def _compare_with_roofline(self, step: StepRecord) -> dict[str, float]:
        """The time of each phase of this step over the least possible, evaluation aside."""
        if self.roofline is None:
            return {}
        roofline, updater, needs, seconds = self.roofline, self.updater, self.updater.needs, self.timer.metrics()
        samples = step.batch.samples
        active = [samples[i] for i in select_rows_with_signal(updater, step.credit, range(len(samples)))]
        observed, learned = lengths_by_prompt(samples), lengths_by_prompt(active) * updater.passes
        policy, critic = step.count.updates >= updater.critic_warmup, updater.critic is not None
        least = {
            "sync": roofline.sync(self.placement.offloaded, self.placement.sent),
            "rollout": roofline.rollout(
                [[part for group in groups for part in list_request_lengths(group, step.number - 1)] for groups in step.rollout.rounds]
            ),
            "observe": roofline.observe(observed, needs.old_logprobs + needs.reference, critic, count_observed_tokens(samples)),
            "update": roofline.update(learned, policy, critic, count_observed_tokens(active) * updater.passes),
        }
        return compute_ratios(least, seconds) | {"throughput/mfu": roofline.compute_mfu(learned if policy else [], seconds["time/update"])}

    def _write_samples(self, step: StepRecord, left_out: list[Group]) -> None:
        """The samples of a step, with their advantages where they were learned from."""
        batch = step.batch
        counts = batch.mask.sum(-1).clamp(min=1)
        own = (step.credit.advantages.sum(-1) / counts).double()  # [B], the mean over a sample's tokens
        samples = [(s, g.answer) for g in [*step.groups, *left_out] for s in g.samples]
        advantages: list[float | None] = self.ranks.gather_by_index(own, batch.index, batch.size).tolist()
        advantages += [None] * (len(samples) - len(advantages))
        computed = self._gather_tokens()
        everything = self.tokens == "all" or step.number in self.dumped
        decode = cache(self.decode)  # each prompt once
        rows = []
        for (scored, answer), advantage in zip(samples, advantages, strict=True):
            row, sample = records.build_sample_row(scored, answer, advantage, decode, "train"), scored.sample
            if self.ranks.main and (everything or sample.key in self.updater.recorder.keys):
                row["tokens"] = records.build_token_lists(sample, self.split_text, computed.get(sample.key))
            rows.append(row)
        self.report.log_samples(step.number, rows)

    def choose_recorded(self, step: int, groups: Sequence[Group]) -> frozenset[Key]:
        """The samples of a step whose tokens are recorded; the same on all ranks, as their groups are."""
        if self.tokens == "all" or step in self.dumped:
            return frozenset(s.sample.key for g in groups for s in g.samples)
        return records.choose_recorded(groups, self.tokens)

    def _gather_tokens(self) -> dict[Key, Tensor]:
        """What the updaters of all ranks recorded, on the CPU. A collective call, but where nothing is recorded."""
        if not self.updater.recorder.keys:
            return {}
        own = {key: values.cpu() for key, values in self.updater.recorder.found.items()}
        return {key: values for part in self.ranks.gather(own) for key, values in part.items()}


def join_metrics(*parts: Mapping[str, float]) -> dict[str, float]:
    """One row of all. Raises ValueError where a name is in two: its value would depend on their order."""
    row: dict[str, float] = {}
    for part in parts:
        if twice := row.keys() & part.keys():
            raise ValueError(f"metrics are made in two places: {', '.join(sorted(twice))}")
        row |= part
    return row


def count_unused_rows(stream: Mapping[str, float]) -> dict[str, float]:
    """Rows so far that were left out, or whose prompt was cut."""
    return {f"prompts/{name}": float(stream[name]) for name in ("too_long", "bad_row", "cut")}


def lengths_by_prompt(samples: Sequence[Sample]) -> list[PromptLengths]:
    """Tokens of each prompt, and of each of its completions."""
    prompts: dict[tuple[int, int], tuple[int, list[int]]] = {}
    for sample in samples:
        prompts.setdefault(sample.key.of_prompt, (len(sample.prompt), []))[1].append(len(sample.tokens))
    return list(prompts.values())


def count_observed_tokens(samples: Sequence[Sample]) -> int:
    """Tokens that environments wrote."""
    return sum(len(sample.tokens) - records.count_written_tokens(sample) for sample in samples)


def list_request_lengths(samples: Sequence[Sample], version: int) -> list[PromptLengths]:
    """What the weights of a version read and sampled of a group: the tokens of its prompt, and of each completion.

    What an environment wrote is read at once, not token by token; so is what an earlier step sampled.
    """
    own = [int((s.mask & (s.versions == version)).sum()) for s in samples]
    before = [int((s.versions < version).sum()) for s in samples]
    if not any(before):
        return [(len(s.prompt), own) for s in samples[:1]]
    return [(len(s.prompt) + old, [new]) for s, new, old in zip(samples, own, before, strict=True) if new]
