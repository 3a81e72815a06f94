"""Rewards in a run: one in every signature is one, failures are masked or stop the run as configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkit.report.folder import read_metrics, read_rows
from tests.conftest import run
from tests.repeatable import select_repeatable

FORMS = """
def ours(prompt, completion, answer, **columns):
    assert prompt[-1]["role"] == "user" and columns["problem"] in prompt[-1]["content"]
    return share(completion)

def compute_score(data_source, solution_str, ground_truth, extra_info):
    assert ground_truth.isdigit() and extra_info["problem"]
    return share(solution_str)

async def trl(prompts, completions, problem, **kwargs):
    assert len(prompts) == len(problem) == 4 and len(set(problem)) == 1
    return [share(said[0]["content"]) for said in completions]

def easyr1(reward_inputs):
    return [{"overall": share(one["response"])} for one in reward_inputs]

def share(text):
    return sum("a" <= c <= "z" for c in text) / max(len(text), 1)

def plain(completion, problem="none"):
    return float(problem == "none")

def moody(completion):
    if sum(map(ord, completion)) % 3 == 0:
        raise RuntimeError("not today")
    return share(completion)
"""


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "forms.py"
    file.write_text(FORMS)
    return file


def trained(small: list[str], folder: Path, *more: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics and samples of one step, without evaluation."""
    ended = run(*small, "steps=1", "data.test=null", f"output_dir={folder}", *more)
    assert ended.code == 0, ended.out + ended.err
    return read_metrics(folder / "metrics.jsonl"), read_rows(folder / "samples.jsonl")


@pytest.fixture(scope="module")
def as_ours(small: list[str], forms: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    metrics, _ = trained(small, tmp_path_factory.mktemp("ours") / "run", f"rewards.accuracy.path={forms}:ours")
    assert 0 < metrics[-1]["reward"] < 1 and metrics[-1]["grad_norm"] > 0
    return [select_repeatable(row) for row in metrics]


@pytest.mark.parametrize(
    "form", ["trl", pytest.param("compute_score", marks=pytest.mark.slow), pytest.param("easyr1", marks=pytest.mark.slow)]
)
def test_the_same_reward_in_any_signature_trains_the_same(
    small: list[str], forms: Path, as_ours: list[dict[str, Any]], tmp_path: Path, form: str
) -> None:
    metrics, _ = trained(small, tmp_path / "run", f"rewards.accuracy.path={forms}:{form}")
    assert [select_repeatable(row) for row in metrics] == as_ours


def test_a_run_warns_of_columns_that_a_setting_hides(small: list[str], forms: Path, tmp_path: Path) -> None:
    only_evaluates = ["steps=0", "eval.problems=2", "engine.rollout=hf", f"output_dir={tmp_path / 'run'}"]
    ended = run(*small, *only_evaluates, f"rewards.accuracy.path={forms}:plain")
    assert ended.code == 0, ended.err
    assert f"warning: rewards.accuracy ({forms}:plain) does not get the data columns problem: " in ended.out
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["eval/accuracy"] == 1.0


def test_failed_samples_have_no_reward_and_the_limit_stops_the_run(small: list[str], forms: Path, tmp_path: Path) -> None:
    moody = [f"rewards.accuracy.path={forms}:moody", "samples_per_prompt=8"]
    metrics, samples = trained(small, tmp_path / "goes_on", *moody, "rewarding.max_failure_rate=1.0")
    failed = [sample for sample in samples if sum(map(ord, sample["completion"])) % 3 == 0]
    assert 2 < len(failed) < 20 and metrics[-1]["rewards/accuracy/failure_rate"] == len(failed) / 32
    assert {sample["reward"] for sample in failed} == {None} and {sample["advantage"] for sample in failed} == {0.0}
    assert all(sample["reward"] is not None for sample in samples if sample not in failed)
    valid = [sample["reward"] for sample in samples if sample["reward"] is not None]
    assert metrics[-1]["reward"] == pytest.approx(sum(valid) / len(valid)) and metrics[-1]["grad_norm"] > 0

    stopped = run(*small, "steps=1", "data.test=null", f"output_dir={tmp_path / 'stops'}", *moody)
    assert stopped.code == 2 and "Traceback" not in stopped.err and "RuntimeError: not today" in stopped.err
    assert f"failed for {len(failed)} of the last 32 samples, more than rewarding.max_failure_rate=0.05 allows" in stopped.err
    replayed = json.loads((tmp_path / "stops" / "replay" / "accuracy.json").read_text())
    assert replayed["items"][0]["completion"] in {sample["completion"] for sample in failed}
