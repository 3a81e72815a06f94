"""Offline runs of the real command: no rollout engine, a reference that is computed once, one seed one run, any number of ranks."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.report.folder import read_metrics
from tests.conftest import ROOT, Ended, run
from tests.repeatable import select_repeatable


@pytest.fixture(scope="module")
def few(tiny_model: Path) -> list[str]:
    """The recipe dpo_math in small."""
    return [
        "recipe=dpo_math",
        f"model.path={tiny_model}",
        "steps=4",
        "prompts_per_step=8",
        "updates_per_step=2",
        "tokens_per_micro_batch=320",
        "optim.lr=3e-3",
        "eval.every=2",
        "eval.problems=16",
        "checkpoint.every=2",
    ]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [select_repeatable(row) for row in read_metrics(folder / "metrics.jsonl")]


def succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out + ended.err
    return ended


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(few: list[str], cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for which importing vLLM would be an error."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "vllm.py").write_text("raise RuntimeError('an offline run has no use for vLLM')\n")
    ended = succeeded(run(*few, f"output_dir={folder / 'run'}", cold=True, RLKIT_CACHE=cache, PYTHONPATH=f"{folder}:{ROOT}"))
    assert "reference log-probs: computed of 96 completions" in ended.out  # 4 steps of 8 pairs and 16 held out
    return folder / "run"


def test_dpo_starts_at_ln_2_and_learns(undisturbed: Path) -> None:
    rows = metrics(undisturbed)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert abs(rows[0]["eval/loss"] - math.log(2)) < 1e-6
    assert abs(rows[0]["eval/rewards/margins"]) < 1e-6
    assert all(row["grad_norm"] > 0 and row["updates_skipped"] == 0 for row in rows[1:])
    assert rows[4]["eval/loss"] < rows[2]["eval/loss"] < rows[0]["eval/loss"]
    assert rows[4]["eval/rewards/margins"] == pytest.approx(rows[4]["eval/rewards/chosen"] - rows[4]["eval/rewards/rejected"])
    floors = [{n: v for n, v in row.items() if n.startswith("floor/")} for row in read_metrics(undisturbed / "metrics.jsonl")]
    assert floors[0] == {} and all(list(row) == ["floor/update"] and 1.0 <= row["floor/update"] < 1e6 for row in floors[1:])
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["accuracy_after"] == rows[4]["eval/accuracy"]
    held_out = summary["held_out"]
    assert held_out["eval/accuracy_low"] < summary["accuracy_after"] < held_out["eval/accuracy_high"] or summary["accuracy_after"] == 1.0
    for name in ("report.png", "model/config.json", "model/tokenizer.json", "checkpoints/step-000004/policy.safetensors"):
        assert (undisturbed / name).stat().st_size > 0, name


def test_a_second_run_finds_the_reference_and_is_the_same(undisturbed: Path, few: list[str], cache: str, tmp_path: Path) -> None:
    ended = succeeded(run(*few, f"output_dir={tmp_path / 'again'}", RLKIT_CACHE=cache))
    assert "reference log-probs: found in the cache" in ended.out
    assert metrics(tmp_path / "again") == metrics(undisturbed)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (undisturbed, tmp_path / "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("signal", "phase", "count", "code"),
    [
        ("SIGKILL", "update", 3, -9),
        pytest.param("SIGTERM", "update", 3, 75, marks=pytest.mark.slow),
        pytest.param("SIGTERM", "evaluation", 2, 75, marks=pytest.mark.slow),
    ],
)
def test_struck_and_resumed(
    undisturbed: Path, few: list[str], cache: str, tmp_path: Path, signal: str, phase: str, count: int, code: int
) -> None:
    words = [*few, f"output_dir={tmp_path / 'run'}"]
    struck = run(signal, phase, str(count), *words, program="struck.py", RLKIT_CACHE=cache)
    assert struck.code == code, struck.out + struck.err
    succeeded(run(*words, RLKIT_CACHE=cache))
    assert metrics(tmp_path / "run") == metrics(undisturbed)


# -- ranks and ZeRO stages ---------------------------------------------------------------------------------------------------------


def first_gradient(words: list[str], folder: Path, ranks: int, zero: int) -> Any:
    out = folder / "gradient.pt"
    folder.mkdir()
    words = [str(out), *words, "updates_per_step=1", f"engine.zero_stage={zero}", f"output_dir={folder / 'run'}"]
    succeeded(run(*words, program="first_gradient.py", ranks=ranks, OMP_NUM_THREADS="1", RLKIT_CACHE=str(folder)))
    return torch.load(out)


@pytest.mark.slow
def test_two_processes_are_one(few: list[str], tmp_path: Path) -> None:
    """The same gradient with all weights in parts, the reference computed by both; tests/runs/test_gradients.py cuts in other ways."""
    one, both = first_gradient(few, tmp_path / "one", 1, 2), first_gradient(few, tmp_path / "both", 2, 3)
    assert one["share"] == 16 and 0 < both["share"] < 16 and one["gradients"].keys() == both["gradients"].keys()
    first, second = (torch.cat([g.flatten().double() for _, g in sorted(seen["gradients"].items())]) for seen in (one, both))
    assert first.norm() > 1e-3
    assert (first - second).norm() / first.norm() < 1e-6


# -- mistakes ----------------------------------------------------------------------------------------------------------------------


def test_pairs_without_a_rejected_one_are_refused(few: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "2 + 2 =", "chosen": "4"}) + "\n")
    ended = run(*few, f"data.train={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 2 and "Traceback" not in ended.err
    for word in ("rejected", "columns: prompt, chosen", "data.columns.rejected"):
        assert word in ended.err


# -- the shipped recipes -----------------------------------------------------------------------------------------------------------


def trained(recipe: str, folder: Path, *more: str) -> dict[str, Any]:
    ended = run(f"recipe={recipe}", *more, f"output_dir={folder}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    print(f"{recipe}: {summary}")
    return summary


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["dpo_math", pytest.param("kto_math", marks=pytest.mark.nightly(part="trainings"))])
def test_held_out_preferences_are_learned(recipe: str, tmp_path: Path) -> None:
    summary = trained(recipe, tmp_path / "run")
    assert abs(summary["accuracy_before"] - 0.5) < 0.1 and summary["accuracy_after"] >= 0.95
    assert summary["held_out"]["eval/rewards/margins"] > 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_supervised_fine_tuning_lowers_the_held_out_loss(tmp_path: Path) -> None:
    """The model that knows both ways is told to be careful."""
    summary = trained("sft_math", tmp_path / "run")
    assert summary["loss_before"] > 0.02 and summary["loss_after"] < 0.005


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_reward_model_ranks_and_is_an_ordinary_classifier(tmp_path: Path) -> None:
    """The exported folder, loaded by transformers alone and fed padded batches, says what the run's last evaluation said."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlkit.builtin import sums

    summary = trained("reward_model", tmp_path / "run")
    assert summary["accuracy_after"] >= 0.95
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    assert model.config.num_labels == 1
    margins = []
    for pair in sums.build_pairs("test"):
        asked = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, tokenize=False)
        both = tokenizer([asked + pair[side] + tokenizer.eos_token for side in ("chosen", "rejected")], padding=True, return_tensors="pt")
        with torch.no_grad():
            chosen, rejected = model(**both).logits.squeeze(-1).tolist()
        margins.append(chosen - rejected)
    assert sum(m > 0 for m in margins) / len(margins) == pytest.approx(summary["accuracy_after"], abs=0.002)
    assert sum(margins) / len(margins) == pytest.approx(summary["held_out"]["eval/rewards/margins"], rel=1e-4)
    judged = ["rewards.accuracy.weight=0", "rewards.rm.path=reward_model", f"rewards.rm.args.model={tmp_path / 'run' / 'model'}"]
    size = ["engine.rollout=hf", "steps=1", "prompts_per_step=4", "samples_per_prompt=2", "data.test=null"]
    ended = run("recipe=grpo_math", *judged, *size, f"output_dir={tmp_path / 'online'}")
    assert ended.code == 0, ended.out + ended.err
    samples = [json.loads(line) for line in (tmp_path / "online" / "samples.jsonl").read_text().splitlines()]
    whole = [sample for sample in samples if sample["stop"] == "eos"]
    assert len(whole) >= 4
    for sample in whole:
        question = {"role": "user", "content": sample["prompt"].splitlines()[1]}
        asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        text = tokenizer(asked + sample["completion"] + tokenizer.eos_token, return_tensors="pt")
        with torch.no_grad():
            assert sample["rewards"]["rm"] == pytest.approx(model(**text).logits.item(), abs=1e-4)


@pytest.mark.nightly(part="trainings")
@pytest.mark.timeout(1200)
def test_ppo_learns_from_a_reward_model_alone(tmp_path: Path) -> None:
    trained("reward_model", tmp_path / "run")
    judged = ["rewards.accuracy.weight=0", "rewards.rm.path=reward_model", f"rewards.rm.args.model={tmp_path / 'run' / 'model'}"]
    # two steps of the critic alone, then six of the policy, whose rate warms up over five of them
    learned = trained("ppo_math", tmp_path / "ppo", *judged, "steps=8", "optim.schedule=constant", "eval.every=0")
    print(f"PPO on the reward model alone: {learned}")
    assert learned["accuracy_after"] >= learned["accuracy_before"] + 0.3


def gsm8k_pairs(folder: Path) -> tuple[Path, Path]:
    """Train and test pairs of the real data where this machine has them, else 40 rows of that form."""
    for place in (Path(os.environ.get("RLKIT_GSM8K_PAIRS", "/nowhere")), ROOT.parent / "shared" / "data" / "gsm8k_pairs"):
        if (place / "train.jsonl").is_file():
            return place / "train.jsonl", place / "test.jsonl"
    print("the real pairs are not on this machine (RLKIT_GSM8K_PAIRS): 40 rows of their form stand in for them")
    rows = [json.loads(line) for line in (ROOT / "tests" / "data" / "gsm8k_like.jsonl").read_text().splitlines()]
    pairs = [{"prompt": r["question"], "chosen": r["answer"], "rejected": other["answer"]} for r, other in itertools.pairwise(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder / "pairs.jsonl", folder / "pairs.jsonl"


@pytest.mark.nightly(part="trainings")
@pytest.mark.timeout(900)
def test_real_pairs_report_their_accuracy_with_its_interval(tmp_path: Path) -> None:
    """On a model that reads bytes and has never seen English the accuracy is what it is."""
    train, test = gsm8k_pairs(tmp_path)
    summary = trained("dpo_gsm8k", tmp_path / "run", f"data.train={train}", f"data.test={test}")
    low, high = summary["held_out"]["eval/accuracy_low"], summary["held_out"]["eval/accuracy_high"]
    assert 0.0 <= low <= summary["accuracy_after"] <= high <= 1.0 and high - low < 0.4
