"""What is recorded of tokens: the first values of a step, of the chosen samples alone, without a pass of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.algorithms import State
from rlkit.report.folder import RunFolder, read_rows
from rlkit.rollout.records import build_token_lists, choose_recorded
from rlkit.types import Group, Key
from rlkit.updates.collate import collate
from rlkit.updates.optimizer_step import UpdateCount
from tests.algorithms.test_grpo import PLAIN, learning
from tests.algorithms.tiny import Policy, groups_of, together

REWARDS = [[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]


def key(group: int, sample: int, groups: list[Group]) -> Key:
    return groups[group].samples[sample].sample.key


def test_the_chosen_go_from_the_lowest_reward_to_the_highest_of_groups_with_a_signal() -> None:
    groups = groups_of(REWARDS)
    assert choose_recorded(groups, 0) == frozenset()
    assert choose_recorded(groups, 2) == {key(0, 1, groups), key(2, 3, groups)}
    assert {s.sample.key for g in (groups[0], groups[2]) for s in g.samples} == choose_recorded(groups, 99)
    assert len(choose_recorded(groups[1:2], 3)) == 3  # without a signal anywhere: any of them
    failed = replace(groups[1], samples=(replace(groups[1].samples[0], reward=None), *groups[1].samples[1:]))
    assert choose_recorded([failed], 1) == {key(1, 0, groups)}


@pytest.mark.parametrize("minibatches", [1, 3])
def test_they_are_the_policys_before_the_step_and_cost_no_pass(minibatches: int) -> None:
    """One update: from its own forward pass, so that groups without a signal have none. Three: of the phase before, so that all have."""
    groups = groups_of(REWARDS)
    every = frozenset(s.sample.key for g in groups for s in g.samples)

    def work(ranks: Any, keys: frozenset[Key]) -> tuple[int, dict[Key, torch.Tensor], Any, set[Key]]:
        policy = Policy(ranks)
        passes: list[int] = []

        def count(samples: Any, width: int) -> Any:
            passes.append(1)
            return Policy.logprobs(policy, samples, width)

        policy.logprobs = count  # type: ignore[method-assign]
        run = learning(PLAIN, ranks, minibatches, policy=policy)
        _, batch = collate(groups, ranks, minibatches, 0)
        expected = [values.clone() for values in Policy.logprobs(policy, batch.samples, batch.mask.shape[1])]
        run.recorder.start(keys)
        signals, _ = run.observe(batch)
        credit, _, _ = run.algorithm.compute_advantages(batch, signals, State(), ranks)
        run.update(batch, signals, credit, UpdateCount())
        learned = {s.key for s, moves in zip(batch.samples, credit.advantages.any(-1).tolist(), strict=True) if moves}
        assert len(learned) < len(every)
        return len(passes), run.recorder.found, (batch.samples, expected), learned

    [(passes, found, (samples, expected), learned)] = together(1, lambda ranks: work(ranks, every))
    [(without, nothing, _, _)] = together(1, lambda ranks: work(ranks, frozenset()))
    assert passes == without and nothing == {}
    assert found.keys() == (learned if minibatches == 1 else every)
    for i, sample in enumerate(samples):
        if sample.key in found:
            size = len(sample.tokens)
            for values, whole in zip(found[sample.key], expected, strict=True):
                assert torch.allclose(values, whole[i, :size].float(), atol=1e-6), sample.key


def test_a_float32_comes_back_from_the_file_as_it_was(tmp_path: Path) -> None:
    sample = max((s.sample for s in groups_of([[1.0] * 8])[0].samples), key=lambda s: len(s.tokens))
    size = len(sample.tokens)
    sample = replace(sample, rollout_logprobs=torch.log(torch.arange(1, size + 1) / 97.0))
    values = torch.randn(2, size, generator=torch.Generator().manual_seed(0)) * 1e-3
    values[0, 0] = -math.inf
    mask = torch.arange(size) < size - 1
    lists = build_token_lists(replace(sample, mask=mask), lambda ids: [str(i) for i in ids], values)
    folder = RunFolder(tmp_path)
    folder.append_samples(1, [{"tokens": lists}])
    folder.close()
    [row] = read_rows(tmp_path / "samples.jsonl")
    tokens = row["tokens"]
    assert list(tokens) == ["ids", "text", "rollout_logprobs", "logprobs", "entropies"]
    assert {len(entries) for entries in tokens.values()} == {size}
    assert tokens["ids"] == sample.tokens.tolist()
    for name, written in {"rollout_logprobs": sample.rollout_logprobs, "entropies": values[1]}.items():
        assert tokens[name][-1] is None  # no token of the policy's
        assert torch.equal(torch.tensor(tokens[name][:-1], dtype=torch.float32), written[:-1]), name
    assert tokens["logprobs"][0] is None and row["not_finite"] == {"tokens.logprobs.0": "-inf"}
    assert build_token_lists(sample, lambda ids: [""] * len(ids), None)["logprobs"] == [None] * size
