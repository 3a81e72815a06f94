"""Distillation on policy on the real engines: a teacher that is the policy moves nothing, a better one teaches, another's is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import free_port, run
from tests.random_models import save_random_model
from tests.teacher_server import Served

NIGHTLY = pytest.mark.nightly(part="trainings")
ALONE = ["algorithm=opd", "samples_per_prompt=1", "rewards.accuracy.weight=0", "eval.every=0", "eval.problems=4"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another family, with the same tokenizer."""
    return save_random_model(tmp_path_factory.mktemp("llama") / "model", "llama")


def test_a_teacher_that_is_the_policy_moves_no_bit(small: list[str], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(*small, *ALONE, f"model.teacher.path={tiny_model}", "steps=2", "checkpoint.every=0", f"output_dir={folder}")
    assert ended.code == 0, ended.out + ended.err
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    steps = rows(folder)[1:]
    assert [row["teacher/kl"] for row in steps] == [0.0, 0.0] and all(
        "reward" not in row and "frac_reward_zero_std" not in row for row in steps
    )
    assert all(row["rewards_failed"] == 0 and "rewards/accuracy/mean" in row for row in steps)
    assert json.loads((folder / "models.json").read_text())["model.teacher"]["config.json"]
    assert "model.teacher model.safetensors" in (folder / "model" / "README.md").read_text()
    assert "teacher" in ended.out and "loading teacher" not in ended.err


def test_here_and_behind_a_server_a_teacher_teaches_the_same(small: list[str], other: Path, tmp_path: Path) -> None:
    """Without any reward; the run that asks a server is resumed with it at another port."""
    words = [*small, *ALONE, "~rewards.accuracy", "data.test=null", "checkpoint.every=1"]
    words = [word for word in words if not word.startswith("rewards.accuracy.")]
    ended = run(*words, "steps=2", f"model.teacher.path={other}", f"output_dir={tmp_path / 'here'}")
    assert ended.code == 0, ended.out + ended.err
    with Served(other) as server:
        ended = run(*words, "steps=1", f"model.teacher.url={server.url}", "offline=true", f"output_dir={tmp_path / 'served'}")
        assert ended.code == 0, ended.out + ended.err
    with Served(other) as server:
        ended = run(*words, "steps=2", f"model.teacher.url={server.url}", "offline=true", f"output_dir={tmp_path / 'served'}")
        assert ended.code == 0, ended.out + ended.err
    here, served = rows(tmp_path / "here"), rows(tmp_path / "served")
    assert len(here) == len(served) == 2 and here[0]["teacher/kl"] != 0.0 and here[0]["grad_norm"] > 0.01
    for one, two in zip(here, served, strict=True):
        assert two["teacher/kl"] == pytest.approx(one["teacher/kl"], abs=1e-4) and two["grad_norm"] == pytest.approx(
            one["grad_norm"], rel=1e-3
        )
    assert json.loads((tmp_path / "served" / "models.json").read_text())["model.teacher"] == {"served": "big"}
    assert not any(key.startswith("rewards/") for key in here[0])


def test_what_cannot_teach_is_refused_before_a_model_is_loaded(small: list[str], tiny_model: Path, other: Path, tmp_path: Path) -> None:
    """A tokenizer with two ids exchanged, fewer tokens than the policy may write, and a server that is not there."""
    from rlkit.builtin.model import build_tokenizer

    file = json.loads(build_tokenizer().backend_tokenizer.to_str())
    vocabulary = file["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").rename(tmp_path / "kept.json")
    (other / "tokenizer.json").write_text(json.dumps(file))
    try:
        ended = run(*small, *ALONE, f"model.teacher.path={other}", f"output_dir={tmp_path / 'run'}")
        assert ended.code == 2 and "has another tokenizer than the policy: 2 of 259 tokens" in ended.err and "('a', 'b')" in ended.err
        dry = run(*small, *ALONE, f"model.teacher.path={other}", "dry_run=true")
        assert dry.code == 2 and "has another tokenizer than the policy" in dry.err
        with Served(other) as server:
            ended = run(*small, *ALONE, f"model.teacher.url={server.url}", f"output_dir={tmp_path / 'run'}")
        assert ended.code == 2 and "texts become other tokens there" in ended.err and len(ended.err.splitlines()) == 1
    finally:
        (tmp_path / "kept.json").rename(other / "tokenizer.json")
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    ended = run(*small, *ALONE, f"model.teacher.url={nobody}", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 2 and f"model.teacher.url {nobody} cannot be asked" in ended.err and "start the teacher there" in ended.err
    assert not (tmp_path / "run").exists()
    ended = run(*small, *ALONE, "model.teacher.path=./nowhere", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 2 and "model.teacher.path ./nowhere does not exist" in ended.err
    with Served(other, context=32) as server:
        ended = run(*small, *ALONE, f"model.teacher.url={server.url}", f"output_dir={tmp_path / 'run'}")
    assert ended.code == 2 and "is more than the 31 tokens that model.teacher.url" in ended.err


@pytest.mark.timeout(1200)
@NIGHTLY
def test_a_trained_model_teaches_a_fresh_one(tmp_path: Path) -> None:
    """Without any reward: 0.35 to 0.95 within 15 steps."""
    taught = run("recipe=grpo_math", "eval.every=0", f"output_dir={tmp_path / 'teacher'}", timeout=600)
    assert taught.code == 0, taught.out + taught.err
    ended = run("recipe=opd_math", f"model.teacher.path={tmp_path / 'teacher' / 'model'}", f"output_dir={tmp_path / 'run'}", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print(summary)
    assert summary["accuracy_before"] <= 0.45 and summary["accuracy_after"] >= 0.95
    steps = [row for row in rows(tmp_path / "run") if "teacher/kl" in row]
    assert len(steps) == 15 and steps[-1]["teacher/kl"] < 0.25 * steps[0]["teacher/kl"]
