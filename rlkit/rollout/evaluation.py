"""Evaluation on held-out problems: accuracy, unbiased pass@k and maj@k, with 95 % intervals.

Every number is computed on all ranks from the results of all problems in their order, so it does not depend on how many ranks there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, nan

import numpy as np

from rlkit.grading.extraction import find_answer
from rlkit.metrics import Mean, mean_of, wilson_interval
from rlkit.rollout import records
from rlkit.rollout.open_groups import PromptRequest
from rlkit.rollout.sampler import Sampler
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sampling, Stop

RIGHT = 0.5  # a score of at least this is a right answer
RESAMPLES, DRAWN_AT_ONCE = 1000, 1_000_000  # of a bootstrap; numbers that it holds in memory
FEW_PROBLEMS = 50  # below it a set says little, and its intervals are too narrow


@dataclass(frozen=True)
class ProblemResult:
    """What became of one problem, by sample."""

    index: int
    grades: tuple[bool | None, ...]  # None: its grading failed
    answers: tuple[str | None, ...]  # final answers, of several samples; None: it gives none
    rewards: tuple[float | None, ...]
    lengths: tuple[int, ...]
    cut: tuple[bool, ...]
    opinions: Mapping[str, tuple[bool | None, ...]]  # as grades, of each second opinion

    @property
    def known(self) -> list[bool]:
        """The grades that there are."""
        return [grade for grade in self.grades if grade is not None]


@dataclass
class Evaluation:
    """One set of problems, the same each time, shared among the ranks. name: of the set; empty for data.test."""

    sampler: Sampler
    prompts: Sequence[PromptRequest]
    ranks: Ranks
    samples: int
    sampling: Sampling  # greedy for one sample a problem
    graded_by: str  # the reward that grades an answer
    name: str = ""
    every: int = 0  # steps between evaluations; 0: only before and after training
    pass_counts: tuple[int, ...] = ()  # each k of pass@k, at most `samples`
    graders: frozenset[str] | None = None  # the rewards that score its samples; None: those of a step
    opinions: tuple[str, ...] = ()  # the rewards among them that are never trained on

    @property
    def prefix(self) -> str:
        """How the names of its metrics begin."""
        return f"eval/{self.name}/" if self.name else "eval/"

    def run(self) -> tuple[dict[str, float], list[Group]] | None:
        """Metrics over all ranks, and this rank's groups; None where a stop was requested."""
        prompts = list(enumerate(self.prompts))
        groups = self.sampler.sample_groups(self.ranks.shard(prompts), self.samples, self.sampling, graders=self.graders)
        if self.ranks.any_rank(groups is None) or groups is None:
            return None
        groups = groups if self.ranks.is_tp_leader else []
        own = [self._read_problem(group) for group in groups]
        problems = sorted((problem for part in self.ranks.gather(own) for problem in part), key=lambda problem: problem.index)
        return {f"{self.prefix}{name}": value for name, value in self._compute_metrics(problems).items()}, groups

    def _read_problem(self, group: Group) -> ProblemResult:
        samples = group.samples
        return ProblemResult(
            group.index,
            tuple(is_graded_right(s.components, self.graded_by) for s in samples),
            tuple(read_vote(s.sample.text) for s in samples) if self.samples > 1 else (),
            tuple(records.get_raw_reward(s) for s in samples),
            tuple(records.count_written_tokens(s.sample) for s in samples),
            tuple(s.sample.stop is Stop.LENGTH for s in samples),
            {name: tuple(is_graded_right(s.components, name) for s in samples) for name in self.opinions},
        )

    def _compute_metrics(self, problems: Sequence[ProblemResult]) -> dict[str, float]:
        rates = [Mean(sum(problem.known), len(problem.known)) for problem in problems if problem.known]
        metrics = describe_shares("accuracy", rates, alone=self.samples == 1)
        for k in self.pass_counts:
            known = [problem.known for problem in problems if len(problem.known) >= k]
            metrics |= describe_shares(f"pass@{k}", [Mean(estimate_pass(len(own), sum(own), k), 1.0) for own in known])
        if self.samples > 1:
            whole = [problem for problem in problems if len(problem.known) == self.samples]
            metrics |= describe_shares(f"maj@{self.samples}", [Mean(grade_majority(p.known, p.answers), 1.0) for p in whole])
        metrics["reward"] = mean_of(reward for p in problems for reward in p.rewards if reward is not None).value
        metrics["completions/mean_length"] = mean_of(length for p in problems for length in p.lengths).value
        metrics["completions/clipped_ratio"] = mean_of(float(cut) for p in problems for cut in p.cut).value
        for name in self.opinions:
            right = [float(grade) for p in problems for grade in p.opinions[name] if grade is not None]
            metrics[f"second_opinion/{name}"] = mean_of(right).value
        return metrics


def is_graded_right(components: Mapping[str, float | None], graded_by: str) -> bool | None:
    """Whether a reward calls a sample right; None where its grading failed."""
    value = components.get(graded_by)
    return None if value is None else value >= RIGHT


def describe_shares(name: str, shares: Sequence[Mean], alone: bool = False) -> dict[str, float]:
    """A share over problems, and its 95 % interval. alone: each problem is one case, right or wrong (Wilson); else cluster bootstrap.

    Where all problems are equal, resampling them shows no spread, and the interval is Wilson's of so many cases.
    """
    total = Mean(sum(share.total for share in shares), sum(share.weight for share in shares))
    if alone or len({share.value for share in shares}) < 2:
        low, high = wilson_interval(Mean(total.value * len(shares), len(shares)) if shares else Mean(0.0, 0.0))
    else:
        low, high = bootstrap_interval(shares)
    return {name: total.value if shares else nan, f"{name}_low": low, f"{name}_high": high}


def bootstrap_interval(clusters: Sequence[Mean]) -> tuple[float, float]:
    """The 95 % interval of a mean over independent clusters, by drawing clusters again; cases within one may depend on each other.

    The draws are the same for the same number of clusters. Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    random, count = np.random.default_rng(len(clusters)), len(clusters)
    totals = np.array([float(cluster.total) for cluster in clusters])
    weights = np.array([float(cluster.weight) for cluster in clusters])
    means = []
    for _ in range(0, RESAMPLES, rows := max(1, min(RESAMPLES, DRAWN_AT_ONCE // count))):
        drawn = random.integers(0, count, size=(rows, count), dtype=np.int32)
        means.append(totals[drawn].sum(1) / weights[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means)[:RESAMPLES], (2.5, 97.5))
    return float(low), float(high)


def estimate_pass(n: int, c: int, k: int) -> float:
    """The probability that of k samples any is right, where c of n are: 1 - C(n-c, k) / C(n, k), without bias (Chen et al., 2021)."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def grade_majority(grades: Sequence[bool], answers: Iterable[str | None]) -> float:
    """Whether the most common final answer is right; of several that are equally common their mean. 0 where no sample gives one."""
    grade_of: dict[str, bool] = {}
    votes: Counter[str] = Counter()
    for grade, answer in zip(grades, answers, strict=True):
        if answer is not None:
            votes[answer] += 1
            grade_of.setdefault(answer, grade)
    most = max(votes.values(), default=0)
    return mean_of(float(grade_of[answer]) for answer, count in votes.items() if count == most).value if votes else 0.0


def read_vote(text: str) -> str | None:
    """The final answer of a completion without spaces, as votes are counted."""
    found = find_answer(text)
    return "".join(found.texts[0].split()).casefold() if found is not None else None


def describe_few(key: str, problems: int) -> str | None:
    """A warning about a set of few problems."""
    if problems >= FEW_PROBLEMS:
        return None
    return (
        f"{key} has {problems} problem{'s' if problems > 1 else ''}: with fewer than {FEW_PROBLEMS}, chance moves its numbers by more than "
        "most training does, and a 95 % interval covers less"
    )
