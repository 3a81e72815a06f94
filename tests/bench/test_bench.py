"""What the benchmark compares, and that it compares nothing else."""

from __future__ import annotations

import statistics

import pytest

from tests.bench import grpo_step


def test_the_lengths_are_those_that_the_benchmark_is_of() -> None:
    ragged, short = grpo_step.lengths("ragged"), grpo_step.lengths("short")
    assert len(ragged) == 16 * 16 and max(ragged) == 256 and 105 < statistics.mean(ragged) < 125
    assert len(short) == 64 * 16 and (min(short), max(short)) == (1, 16)
    assert ragged == grpo_step.lengths("ragged")
    smollm2 = grpo_step.lengths("smollm2")
    assert len(smollm2) == 8 * 8 and max(smollm2) == 128
    for kind, mean, most in (("1.5b", 250, 512), ("1.5b-long", 700, 2048), ("7b", 250, 512)):
        drawn = grpo_step.lengths(kind)
        assert len(drawn) == 512 and max(drawn) == most and 0.9 * mean < statistics.mean(drawn) < 1.01 * mean, kind
    assert grpo_step.lengths("1.5b") == grpo_step.lengths("7b")


@pytest.mark.parametrize(("name", "parameters"), [("qwen2_5_1_5b", 1_543_714_304), ("qwen2_5_7b", 7_615_616_512)])
def test_the_models_are_of_the_real_size(name: str, parameters: int) -> None:
    """As their makers publish them: Qwen/Qwen2.5-1.5B and Qwen/Qwen2.5-7B on the hub."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**grpo_step.sides(name)))
    assert model.num_parameters() == parameters


def test_sides_that_do_not_do_the_same_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    fast, slow = (
        {"seconds": s, "tokens": 100, "phases": {"rollout": s - 0.5, "resume": 0.1}, "floors": {"rollout": 2.0 * s - 1.0}}
        for s in (2.0, 4.0)
    )
    ours = [fast | {"memory": {"train_peak_gib": 1.5}, "mfu": 0.25}, slow | {"memory": {"train_peak_gib": 2.5}, "mfu": 0.35}]
    theirs = [{"seconds": 9.0, "tokens": 100, "phases": {"rollout": 6.0}, "memory": {"whole_peak_gib": 3.5}}]
    assert grpo_step.told("ragged", {"rlkit": ours, "trl": theirs}) == 0
    said = capsys.readouterr().out
    assert (
        "100 completion tokens a step" in said
        and "3.000 s   33 tokens/s   rollout 2.500 (5.0x its least), resume 0.100\n" in said
        and "mfu 30.0%   peak GiB train 2.5\n" in said
        and "9.000 s   11 tokens/s   rollout 6.000\n         peak GiB whole 3.5\n" in said
        and "trl / rlkit = 3.00" in said
    )
    bare = [{"seconds": 2.0, "tokens": 100, "phases": {"rollout": 2.0}}]
    assert grpo_step.told("ragged", {"rlkit": ours, "vllm": bare}) == 0
    assert "rlkit / vllm = 1.250" in capsys.readouterr().out  # rollouts of 2.5 and 2 s
    assert grpo_step.told("ragged", {"rlkit": ours, "trl": [{"seconds": 9.0, "tokens": 99}]}) == 1
    assert "not the same work" in capsys.readouterr().out
