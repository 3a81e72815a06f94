"""What reward does to a model: the built-in task is learned, nothing moves without a signal, and real rows train."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, run

TOY = ROOT / "tests" / "programs" / "toy_reward.py"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


NIGHTLY = pytest.mark.nightly(part="trainings")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "problems"), [pytest.param(0, 250, marks=pytest.mark.slow), *(pytest.param(seed, 1000, marks=NIGHTLY) for seed in (0, 1, 2))]
)
def test_the_built_in_task_is_learned(seed: int, problems: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run("recipe=grpo_math", f"seed={seed}", f"eval.problems={problems}", f"output_dir={folder}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((folder / "summary.json").read_text())
    print(f"seed {seed}: {summary}")
    assert 0.25 <= summary["accuracy_before"] <= 0.45
    assert summary["accuracy_after"] >= 0.95
    rows = lines(folder / "metrics.jsonl")
    assert [row["second_opinion/alarms"] for row in rows] == [0.0] * len(rows)  # it learned what it was to learn
    assert rows[-1]["eval/second_opinion/strict_accuracy"] >= 0.95
    if seed == 0:
        assert answers_agree(folder, problems) >= 0.995


def answers_agree(folder: Path, problems: int) -> float:
    """The share of held-out problems on which `model/`, loaded by transformers alone, writes what the run's last evaluation wrote."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    last = max(row["step"] for row in lines(folder / "metrics.jsonl"))
    said = [row for row in lines(folder / "samples.jsonl") if row["split"] == "test" and row["step"] == last]
    assert len(said) == problems
    from rlkit.builtin.sums import build_rows

    same = 0
    asked = build_rows("test")
    for start in range(0, problems, 250):
        chats = [asked[row["key"][0]]["prompt"] for row in said[start : start + 250]]
        inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        written = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        same += sum(ours == row["completion"] for ours, row in zip(written, said[start : start + 250], strict=True))
    return same / problems


def test_a_constant_reward_moves_no_bit(small: list[str], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(*small, f"rewards.accuracy.path={TOY}:constant", "steps=2", f"output_dir={folder}")
    assert ended.code == 0, ended.out + ended.err
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [row["updates_without_signal"] for row in lines(folder / "metrics.jsonl")[1:]] == [1.0, 1.0]
    assert all(row["frac_reward_zero_std"] == 1.0 for row in lines(folder / "metrics.jsonl")[1:])


def gsm8k() -> tuple[Path, Path]:
    """Train and test rows of the real GSM8K where this machine has them, else 40 rows of that form."""
    for folder in (Path(os.environ.get("RLKIT_GSM8K", "/nowhere")), ROOT.parent / "shared" / "data" / "gsm8k"):
        if (folder / "train.jsonl").is_file():
            return folder / "train.jsonl", folder / "test.jsonl"
    print("the real GSM8K is not on this machine (RLKIT_GSM8K): 40 rows of its form stand in for it")
    stand_in = ROOT / "tests" / "data" / "gsm8k_like.jsonl"
    return stand_in, stand_in


def test_gsm8k_trains_a_small_random_model(tiny_model: Path, tmp_path: Path) -> None:
    train, test = gsm8k()
    folder = tmp_path / "run"
    ended = run(
        "recipe=grpo_gsm8k",
        f"model.path={tiny_model}",
        f"data.train={train}",
        f"data.test={test}",
        f"rewards.letters.path={TOY}:letters",
        "steps=2",
        "prompts_per_step=4",
        "samples_per_prompt=4",
        "max_prompt_tokens=1000",
        "max_completion_tokens=24",
        "tokens_per_micro_batch=2048",
        "optim.lr=1e-3",
        "eval.problems=8",
        f"output_dir={folder}",
    )
    assert ended.code == 0, ended.out + ended.err
    rows = lines(folder / "metrics.jsonl")
    assert rows[1]["rewards/accuracy/mean"] == 0.0  # random text solves nothing
    assert 0 < rows[1]["rewards/letters/mean"] < 1
    assert rows[1]["rewards_failed"] == 0
    sample = next(row for row in lines(folder / "samples.jsonl") if row["split"] == "train")
    assert "put the final answer in \\boxed{}" in sample["prompt"]


def test_two_updates_and_two_passes_see_every_group_twice(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(
        *small,
        "steps=1",
        "updates_per_step=4",
        "passes_per_step=2",
        "algorithm.kl_coef=0.1",
        "algorithm.reduction=token_mean",
        f"output_dir={folder}",
    )
    assert ended.code == 0, ended.out + ended.err
    row = lines(folder / "metrics.jsonl")[1]
    assert row["sampling/sampling_logp_difference/mean"] < 1e-5
    assert row["kl"] > 1e-6  # the first update moved the policy away from the reference, and the next ones saw it
    state = json.loads((folder / "checkpoints" / "step-000001" / "state.json").read_text())
    assert state["count"] == {"updates": 4, "skipped_in_a_row": 0}
