"""dry_run=true finds what the run would, and shows rows, a prompt with its answer, and the least time of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit import run
from tests.conftest import run as run_alone

REWARD = "def score(prompt, completion, answer, **columns) -> float:\n    return float(answer in completion)\n"


@pytest.fixture
def words(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(9)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    Path("mine.py").write_text(REWARD)
    Path("broken.py").write_text("import no_such_library\n\n" + REWARD)
    return [
        *("recipe=grpo", f"model.path={tiny_model}", "data.train=train.jsonl", "data.test=test.jsonl", "engine.rollout=hf"),
        *("rewards.accuracy.path=mine.py:score", "max_prompt_tokens=64", "max_completion_tokens=64", "dry_run=true"),
    ]


def test_it_shows_rows_a_prompt_with_its_answer_and_the_least_time(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(words) == 0
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["rows"].strip() == "train 9, test 1"
    assert "What is 0 + 1?" in shown["first prompt"] and "assistant" in shown["first prompt"]  # by the chat template
    assert shown["its answer"].strip() == "'1'"
    assert "a step on this machine, were every sample as long as it may be: rollout" in shown["least time"]
    assert "GiB" in shown["memory"] or "MiB" in shown["memory"]


TOOLS = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One of them.
        b: The other.
    """
    return a + b
'''


def test_it_loads_the_environment_and_tells_how_calls_are_read(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("tools.py").write_text(TOOLS)
    assert run.main([*words, "environment.path=tools.py:add"]) == 0
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["it answers"].strip() == "tools: add; calls are read by hermes (functions)"
    assert shown["environment"].strip() == "tools.py:add, at most 8 turns an episode"
    assert run.main([*words, "environment.path=tools.py:add", "rewards.accuracy.weight=0"]) == 2
    assert "the environment gives no reward (a class of tools: get_reward), and no other reward counts" in capsys.readouterr().err


WRONG = {
    "data.train=trian.jsonl": "data.train trian.jsonl does not exist; in",
    "data.test=nowhere/test.jsonl": "data.test nowhere/test.jsonl does not exist",
    "data.columns.prompt=qestion": "qestion",
    "data.columns.answer=anwser": "anwser",
    "rewards.accuracy.path=mime.py:score": "mime.py (did you mean mine.py?)",
    "rewards.accuracy.path=mine.py:scores": "has no function 'scores' (did you mean score?)",
    "rewards.accuracy.path=broken.py:score": "no_such_library",
    "rewards.accuracy.path=acuracy": "unknown reward 'acuracy' (did you mean accuracy or strict_accuracy?)",
    "model.path=./no_model": "model.path ./no_model does not exist",
    "model.path=a--b/c": "model.path a--b/c is no folder here, and no name of the hub",
    "data.template='{{ nothing }}'": "nothing",
    "max_completion_tokens=4096": "is more than the 2048 tokens",
}


@pytest.mark.parametrize("word", WRONG)
def test_it_finds_what_the_run_would(word: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*words, "tokens_per_micro_batch=16384", word]) == 2
    told = capsys.readouterr()
    assert WRONG[word] in told.err and told.out == "" and "Traceback" not in told.err, told.err


def test_a_run_whose_reward_does_not_load_leaves_no_folder(words: list[str], tmp_path: Path) -> None:
    ended = run_alone(*words, "dry_run=false", "rewards.accuracy.path=mine.py:scores", cwd=tmp_path)
    assert ended.code == 2 and "has no function 'scores' (did you mean score?)" in ended.err
    assert ended.out.count("\n  disk ") == 1 and not (tmp_path / "runs").exists()


def test_a_plan_that_is_too_large_is_refused_after_it_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    huge = "model.shape={hidden: 8192, intermediate: 28672, layers: 80, heads: 64, kv_heads: 8, head_dim: 128, vocab: 128256, tied: false}"
    assert run.main(["recipe=grpo_math", "model=hf", "model.path=some/model", huge, "dry_run=true"]) == 2
    told = capsys.readouterr()
    assert "the plan does not fit into memory" in told.err and "least time" in told.out


def test_a_step_of_any_size_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """No list has an entry for each of its two thousand million prompts."""
    assert run.main(["recipe=grpo_math", "prompts_per_step=2147483647", "hardware.force=true", "dry_run=true"]) == 0
    assert "least time" not in capsys.readouterr().out
