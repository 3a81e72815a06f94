"""One seed, one run: twice over, killed and resumed, stopped and resumed, the metrics are the same to the last bit."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.report.audit import check_audit
from rlkit.report.folder import read_metrics, read_rows
from tests.conftest import Ended, run
from tests.repeatable import select_repeatable


def metrics(folder: Path) -> list[dict[str, object]]:
    return [select_repeatable(row) for row in read_metrics(folder / "metrics.jsonl")]


def read_stable(folder: Path) -> list[object]:
    """Of a run's audit what is equal in equal runs: its inputs, samples and weights."""
    assert check_audit(folder).problems == []
    first, *_, last = (json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines())
    assert first["inputs"]["data"]["train"] or first["inputs"]["models"]
    return [first["inputs"], last["sealed"]["run"]["samples.jsonl"], last["sealed"]["model"]]


def succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out + ended.err
    return ended


@pytest.fixture(scope="module")
def undisturbed(small_vllm: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    succeeded(run(*small_vllm, f"output_dir={folder}"))
    return folder


def test_the_run_learns_and_leaves_what_it_promises(undisturbed: Path) -> None:
    rows = metrics(undisturbed)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [("eval/accuracy" in row) for row in rows] == [True, False, True, False, True]
    assert all(0 < row["grad_norm"] < 100 for row in rows[1:])
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in rows[1:])
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("done", 4)
    assert summary["accuracy_before"] == rows[0]["eval/accuracy"]
    assert summary["accuracy_after"] == rows[4]["eval/accuracy"]
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    for name in ("recipe.yaml", "environment.json", "samples.jsonl", "report.png", "model/config.json", "model/tokenizer.json"):
        assert (undisturbed / name).stat().st_size > 0, name
    samples = [json.loads(line) for line in (undisturbed / "samples.jsonl").read_text().splitlines()]
    trained = [s for s in samples if s["split"] == "train"]
    assert len(trained) == 4 * 16
    assert {s["version"] for s in trained if s["step"] == 3} == {2}
    group = [s for s in trained if s["step"] == 1 and s["key"][:2] == trained[0]["key"][:2]]
    assert len(group) == 4
    mean = sum(s["reward"] for s in group) / 4
    std = (sum((s["reward"] - mean) ** 2 for s in group) / 3) ** 0.5
    _check_tokens(trained)
    for s in group:
        assert s["advantage"] == pytest.approx((s["reward"] - mean) / max(std, 1e-6), abs=1e-5)


def _check_tokens(trained: list[dict[str, Any]]) -> None:
    """Four samples a step have theirs (report.tokens), as sampler and trainer saw them."""
    recorded = [s for s in trained if "tokens" in s]
    assert [s["step"] for s in recorded] == [step for step in range(1, 5) for _ in range(4)]
    for s in recorded:
        tokens = s["tokens"]
        assert "".join(tokens["text"]) == s["completion"]
        assert len({len(entries) for entries in tokens.values()}) == 1
        if s["advantage"] != 0:  # others the update does not compute
            assert tokens["logprobs"] == [pytest.approx(value, abs=1e-4) for value in tokens["rollout_logprobs"]]
            assert all(value > 0 for value in tokens["entropies"])
    assert any(s["advantage"] != 0 for s in recorded)
    assert all(s["answer"] is not None and isinstance(s["extra"], dict) for s in trained)


def test_every_phase_says_how_far_it_is_from_its_floor(undisturbed: Path) -> None:
    rows = read_metrics(undisturbed / "metrics.jsonl")
    found = [{name: value for name, value in row.items() if name.startswith("floor/")} for row in rows]
    assert found[0] == {}
    for floors in found[1:]:
        assert {
            "floor/rollout",
            "floor/update",
        } <= floors.keys() and "floor/observe" not in floors  # the update itself says the old log-probs
        assert all(1.0 <= times < 1e6 for times in floors.values()), floors
    assert ["floor/sync" in floors for floors in found] == [
        False,
        False,
        True,
        False,
        True,
    ]  # an evaluation before a step has sent the weights
    assert all(0.0 < row["throughput/mfu"] <= 1.0 for row in rows[1:])


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(undisturbed: Path, small_vllm: list[str], tmp_path: Path) -> None:
    succeeded(run(*small_vllm, f"output_dir={tmp_path / 'again'}", cold=True))  # another process in all, with other hashes
    assert metrics(tmp_path / "again") == metrics(undisturbed)
    assert read_stable(tmp_path / "again") == read_stable(undisturbed)
    succeeded(run(*small_vllm, "steps=1", "seed=1", f"output_dir={tmp_path / 'other'}"))
    assert metrics(tmp_path / "other")[1]["reward"] != metrics(undisturbed)[1]["reward"]


def test_two_processes_that_share_rows_and_engine_are_one_to_rounding(undisturbed: Path, small_vllm: list[str], tmp_path: Path) -> None:
    """With budgets that hold the longest sample, 48 + 16 tokens, only together."""
    words = ["engine.sequence_parallel=2", "engine.tensor_parallel=2", "tokens_per_micro_batch=32", "report.tokens=all"]
    succeeded(run(*small_vllm, *words, f"output_dir={tmp_path / 'run'}", ranks=2, OMP_NUM_THREADS="1"))
    both, alone = metrics(tmp_path / "run"), metrics(undisturbed)
    assert [row.keys() for row in both] == [row.keys() for row in alone]
    assert both == [pytest.approx(row, rel=1e-5, abs=1e-5) for row in alone]
    recorded, some = (
        {
            (row["step"], *row["key"]): row["tokens"]
            for row in read_rows(folder / "samples.jsonl")
            if row["split"] == "train" and "tokens" in row
        }
        for folder in (tmp_path / "run", undisturbed)
    )
    assert len(recorded) == 4 * 16 and len(some) == 4 * 4
    for key, tokens in some.items():
        assert recorded[key] == {name: pytest.approx(values, abs=1e-4) for name, values in tokens.items()}
    phases = [{name for name in row if name.startswith("floor/")} for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert all({"floor/rollout", "floor/update"} <= told for told in phases[1:])  # a crew is timed too


def resumed_equals(undisturbed: Path, small_vllm: list[str], folder: Path) -> None:
    succeeded(run(*small_vllm, f"output_dir={folder}"))
    assert metrics(folder) == metrics(undisturbed)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "done"


MOMENTS = [("rollout", 3), ("reward", 5), ("update", 3), ("sync", 4), ("checkpoint", 1)]


@pytest.mark.parametrize(
    ("phase", "count"),
    [pytest.param(*moment, marks=() if moment[0] == "update" else pytest.mark.slow) for moment in MOMENTS],
)
def test_killed_and_resumed(undisturbed: Path, small_vllm: list[str], tmp_path: Path, phase: str, count: int) -> None:
    folder = tmp_path / "run"
    killed = run("SIGKILL", phase, str(count), *small_vllm, f"output_dir={folder}", program="struck.py")
    assert killed.code == -9
    assert not (folder / "summary.json").exists()
    resumed_equals(undisturbed, small_vllm, folder)
    result = check_audit(folder)
    assert result.problems == []
    assert [line.split()[0] for line in result.events if not line.startswith(("saved", "evaluated"))] == [
        "started",
        "lost:",
        "resumed",
        "finished",
    ]


STOPS = [  # phase, how often it had begun, the step that the checkpoint is of
    ("rollout", 3, 2),  # a rollout is abandoned
    pytest.param("update", 3, 3, marks=pytest.mark.slow),  # an update is finished
    pytest.param("evaluation", 1, 0, marks=pytest.mark.slow),
    pytest.param("evaluation", 2, 2, marks=pytest.mark.slow),  # the step is saved, its evaluation is made up for
]


@pytest.mark.parametrize(("phase", "count", "after"), STOPS)
def test_stopped_and_resumed(undisturbed: Path, small_vllm: list[str], tmp_path: Path, phase: str, count: int, after: int) -> None:
    folder = tmp_path / "run"
    stopped = run("SIGTERM", phase, str(count), *small_vllm, f"output_dir={folder}", program="struck.py")
    assert stopped.code == 75, stopped.out + stopped.err
    assert time.time() - float(re.findall(r"struck at ([\d.]+)", stopped.err)[0]) < 30
    assert f"stopped after step {after} of 4" in stopped.err
    assert (folder / "checkpoints" / f"step-{after:06d}" / "state.json").is_file()
    resumed_equals(undisturbed, small_vllm, folder)


def test_a_finished_or_changed_run_is_refused(undisturbed: Path, small_vllm: list[str], tmp_path: Path) -> None:
    finished = run(*small_vllm, f"output_dir={undisturbed}")
    assert finished.code == 2
    assert "holds a finished run" in finished.err
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text((undisturbed / "recipe.yaml").read_text().replace("lr: 0.003", "lr: 0.1"))
    (folder / "metrics.jsonl").write_text((undisturbed / "metrics.jsonl").read_text())
    changed = run(*small_vllm, f"output_dir={folder}")
    assert changed.code == 2
    assert "optim.lr: 0.1 then, 0.003 now" in changed.err
