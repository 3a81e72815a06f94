from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlkit.engines.packing import pack_samples
from rlkit.errors import RunFailed, UserError
from rlkit.types import Sample
from rlkit.updates import micro_batch_fit
from rlkit.updates.micro_batch_fit import StepShape


class Model:
    """Has room for so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.tried = tokens, list[int]()

    def reserve_update(self) -> Sequence[torch.Tensor]:
        return []

    def try_samples(self, samples: Sequence[Sample]) -> None:
        self.tried.append(sum(len(s.prompt) + len(s.tokens) for s in samples))
        if self.tried[-1] > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")


def fitted(budget: int, share: int = 10**9, least: int = 10, **rooms: int) -> tuple[tuple[int, int | None], list[list[int]]]:
    models = [Model(tokens) for tokens in rooms.values()]
    found = micro_batch_fit.largest_micro_batch(models, budget, StepShape(3, 7, 1, share, least), bool)  # type: ignore[arg-type]
    return found, [model.tried for model in models]


def test_the_budget_is_halved_until_it_fits() -> None:
    assert fitted(800, policy=800) == ((800, None), [[800]])
    assert fitted(800, policy=350) == ((200, 800), [[800, 400, 200]])
    assert fitted(800, policy=800, critic=500) == ((400, 800), [[800, 400], [800, 400]])  # both must find room
    assert fitted(15, policy=10) == ((15, None), [[10]])  # one sample of 10 tokens, and no second


def test_no_more_is_tried_than_a_step_can_bring() -> None:
    assert fitted(10**9, share=200, policy=200) == ((10**9, None), [[200]])
    assert fitted(10**9, share=200, policy=100) == ((100, 10**9), [[200, 100]])


def test_ranks_that_share_rows_try_them_together() -> None:
    """Two ranks with 25 tokens each: five samples of 10, three of them the first's; with 12 each two samples."""
    tried = []
    for place in (0, 1):
        models = [Model(100), Model(10)]
        found = micro_batch_fit.largest_micro_batch(models, 25, StepShape(3, 7, 1, 10**9, 5), bool, (2, place))  # type: ignore[arg-type]
        tried.append((found, models[1].tried))
    assert tried == [((12, 25), [30, 10]), ((12, 25), [20, 10])]


def test_the_samples_tried_fill_a_row() -> None:
    """Prompts of 3 tokens, completions of 7, four of a prompt: 31 tokens together, and what is left is a smaller one. The last token
    of each is no input."""
    for tokens, count in ((10, 1), (24, 3), (31, 4), (62, 8), (72, 9), (31 * 150, 600)):
        samples = micro_batch_fit.longest_samples(tokens, 3, 7, 4)
        row = pack_samples(samples, 7, torch.device("cpu"))
        assert len(samples) == count and tokens - 7 < row.ids.shape[1] + count <= tokens, tokens
        assert row.seq_lens.cu_seqlens_k[-1] == 9 * count


def test_one_sample_that_does_not_fit_is_said_so() -> None:
    assert fitted(45, least=20, policy=20) == ((22, 45), [[40, 20]])  # a pair is never split
    with pytest.raises(UserError, match=r"do not fit into memory \(10 tokens\); engine.gradient_checkpointing=1"):
        fitted(40, policy=9)


def test_what_fits_here_and_not_on_another_rank_is_halved_too() -> None:
    answers = iter([True, False])
    step = StepShape(3, 7, 1, 800, 10)
    found = micro_batch_fit.largest_micro_batch([Model(800)], 800, step, lambda mine: mine or next(answers))  # type: ignore[list-item]
    assert found == (400, 800)


def test_ranks_that_do_not_come_are_not_waited_for_by_one_without_memory(tmp_path: Path) -> None:
    apart, together = (micro_batch_fit.any_rank_after_barrier(lambda came=came: came, bool, tmp_path, 800, 10) for came in (False, True))
    assert (together(True), together(False), apart(False)) == (True, False, False)
    with pytest.raises(RunFailed, match=r"on this process alone, with tokens_per_micro_batch=800; .* with 400$"):
        apart(True)
    assert micro_batch_fit.read_budget(tmp_path, 800) == 400


def test_other_errors_are_not_taken_for_memory() -> None:
    class Broken(Model):
        def try_samples(self, samples: Sequence[Sample]) -> None:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        micro_batch_fit.largest_micro_batch([Broken(1)], 40, StepShape(3, 7, 1, 40, 10), bool)  # type: ignore[list-item]
    assert micro_batch_fit.is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")
    )


def test_the_next_attempt_begins_with_half(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert micro_batch_fit.read_budget(folder, 800) == 800
    assert "in the phase update with tokens_per_micro_batch=800; start again with output_dir" in micro_batch_fit.halve_budget(
        folder, "update", 800, 10
    )
    assert micro_batch_fit.read_budget(folder, 800) == 400 and micro_batch_fit.read_budget(folder, 300) == 300
    assert (
        "engine.vllm.gpu_memory_utilization" in micro_batch_fit.explain_rollout_memory("rollout")
        and micro_batch_fit.read_budget(folder, 800) == 400
    )
    assert "one sample a micro-batch" in micro_batch_fit.halve_budget(folder, "observe", 10, 10)
