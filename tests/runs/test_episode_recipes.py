"""The recipes of episodes: what the built-in model learns in two turns, and that those with tools run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, run
from tests.rewarding.conftest import explain_no_sandbox

GSM8K_LIKE = ROOT / "tests" / "data" / "gsm8k_like.jsonl"
SMALL = ["prompts_per_step=2", "samples_per_prompt=2", "max_prompt_tokens=480", "max_completion_tokens=64", "engine.rollout=hf"]
ONE_TURN = 1 / 3  # of the games, which one guess wins at most


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_documents(folder: Path) -> None:
    capitals = {"France": "Paris", "Italy": "Rome"}
    documents = [{"title": town, "text": f"{town} is the capital of {land}."} for land, town in capitals.items()]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    questions = [{"question": f"What is the capital of {land}?", "answer": town} for land, town in capitals.items()]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))


@pytest.mark.parametrize(
    ("name", "data", "tools"),
    [
        ("grpo_python_tool", [], "tools: python"),
        (
            "grpo_search",
            ["data.train=questions.jsonl", "data.test=questions.jsonl", "environment.args.file=documents.jsonl"],
            "tools: search",
        ),
    ],
)
def test_a_recipe_with_a_tool_runs(name: str, data: list[str], tools: str, tmp_path: Path) -> None:
    """Its plan as it is shipped, without a hub; a step of the built-in model, which calls nothing."""
    if name == "grpo_python_tool" and (reason := explain_no_sandbox()):
        pytest.skip(reason)
    write_documents(tmp_path)
    planned = run(f"recipe={name}", *data, "dry_run=true", "hardware.force=true", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert planned.code == 0, planned.err
    assert tools in planned.out and "Qwen/Qwen2.5-1.5B-Instruct" in planned.out
    own = data or [f"data.train={GSM8K_LIKE}", f"data.test={GSM8K_LIKE}"]
    sizes = [*SMALL, "steps=1", "eval.problems=2", "environment.max_observation_tokens=64", "output_dir=out"]
    ended = run(f"recipe={name}", *own, "model.path=builtin", *sizes, cwd=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    row = read_lines(tmp_path / "out" / "metrics.jsonl")[1]
    assert (row["environment/turns"], row["environment/tool_calls"], row["rewards_failed"]) == (1.0, 0.0, 0.0)


@pytest.mark.nightly(part="trainings")
@pytest.mark.timeout(900)
def test_two_turns_are_learned(tmp_path: Path) -> None:
    """More games are won than one guess can win: the gain needs both turns."""
    ended = run("recipe=grpo_guess", "output_dir=out", cwd=tmp_path, timeout=800)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    samples = [row for row in read_lines(tmp_path / "out" / "samples.jsonl") if row["split"] == "test"]
    for step in (0, max(row["step"] for row in samples)):
        for row in [row for row in samples if row["step"] == step][:10]:
            print(step, row["reward"], [turn["text"] for turn in row.get("turns", [])])
    print(summary)
    assert summary["accuracy_after"] - summary["accuracy_before"] >= 0.3
    assert summary["accuracy_after"] > ONE_TURN + 0.15
