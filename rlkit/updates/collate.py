"""Builds the batch of this rank from the groups of all ranks: whole samples move so that the tokens of each minibatch are balanced."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.errors import RunFailed
from rlkit.ops.batching import assign_minibatches, balance_samples, measure_sample
from rlkit.ops.masking import pad_rows
from rlkit.runtime.ranks import Ranks
from rlkit.types import Batch, Group, Sample, ScoredSample, Stop


def collate(
    mine: list[Group], ranks: Ranks, minibatches: int, version: int, max_lag: int = 0, mask_truncated: bool = False
) -> tuple[list[Group], Batch]:
    """All groups of the step in order, and the batch of samples that this rank works on. Raises RunFailed where a sample is too old.

    mask_truncated: completions that were cut at the limit are masked in the batch; their rewards stay in the baseline (overlong filtering:
    DAPO, arXiv 2503.14476, section 3.4).
    """
    for sample in (s.sample for g in mine for s in g.samples):
        lag = compute_lag(sample, version)
        if bool((lag > max_lag).any()) or bool((lag < 0).any()):
            raise RunFailed(
                f"the completion {sample.key} was sampled by weights {sample.versions.unique().tolist()}, the policy is at {version} and "
                f"learns from samples of weights at most {max_lag} steps old"
            )
    groups = sorted((g for part in ranks.gather(mine) for g in part), key=lambda g: g.index)
    parts = assign_minibatches(len(groups), minibatches)
    flat = [(g, parts[g], s) for g, group in enumerate(groups) for s in group.samples]  # N of (group, minibatch, sample)
    owner = [0] * len(flat)
    for m in range(minibatches):
        members = [i for i, (_, part, _) in enumerate(flat) if part == m]
        sizes = [measure_sample(flat[i][2].sample) for i in members]
        for i, rank in zip(members, balance_samples(sizes, ranks.world), strict=True):
            owner[i] = rank
    chosen = [i for i, rank in enumerate(owner) if rank == ranks.rank]
    samples = tuple(flat[i][2].sample for i in chosen)
    rewards = [flat[i][2].reward for i in chosen]
    width = max((len(s.tokens) for s in samples), default=0)
    baselines = [groups[flat[i][0]].greedy for i in chosen]
    greedy = all(g.greedy for g in groups)  # of all ranks, so that a rank without samples has an empty tensor
    return groups, Batch(
        samples=samples,
        mask=pad_rows([s.mask & (not mask_truncated or s.stop is not Stop.LENGTH) for s in samples], width, False).bool(),
        rollout_logprobs=pad_rows([s.rollout_logprobs for s in samples], width, 0.0),
        rewards=torch.tensor([0.0 if r is None else r for r in rewards], dtype=torch.float64),
        valid=torch.tensor([r is not None for r in rewards], dtype=torch.bool),
        group=torch.tensor([flat[i][0] for i in chosen], dtype=torch.int64),
        index=torch.tensor(chosen, dtype=torch.int64),
        minibatch=torch.tensor([flat[i][1] for i in chosen], dtype=torch.int64),
        lag=pad_rows([compute_lag(s, version) for s in samples], width, 0).long(),
        size=len(flat),
        turn_rewards=place_turn_rewards([flat[i][2] for i in chosen], width),
        baseline=torch.tensor([get_reward(g) for g in baselines], dtype=torch.float64) if greedy else None,
    )


def place_turn_rewards(scored: list[ScoredSample], width: int) -> Tensor | None:
    """[B, width] float64, the rewards of turns on the last token of each; None where no sample has any."""
    if not any(s.turn_rewards for s in scored):
        return None
    grid = torch.zeros(len(scored), width, dtype=torch.float64)
    for row, sample in enumerate(scored):
        for place, reward in sample.turn_rewards:
            grid[row, place] += reward
    return grid


def compute_lag(sample: Sample, version: int) -> Tensor:
    """Steps from the weights that sampled each token to `version`, 0 where mask is False; [L] int64."""
    return torch.where(sample.mask, version - sample.versions.long(), 0)


def get_reward(scored: ScoredSample | None) -> float:
    """nan where there is none."""
    return float("nan") if scored is None or scored.reward is None else scored.reward
