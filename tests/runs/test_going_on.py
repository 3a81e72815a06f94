"""Runs that go on with more steps, that stop early, and whose best weights are exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli import export
from rlkit.report.folder import read_metrics
from rlkit.updates.lr_schedule import Schedule
from tests.conftest import Ended, run
from tests.repeatable import select_repeatable

CONSTANT = ("optim.schedule=constant", "optim.warmup_steps=0")


@pytest.fixture(scope="module")
def pairs(tiny_model: Path) -> list[str]:
    """dpo_math in small: no reference, an evaluation after each step."""
    return [
        *("recipe=dpo_math", "algorithm.loss=simpo", f"model.path={tiny_model}", "steps=4", "prompts_per_step=4"),
        *("tokens_per_micro_batch=320", "optim.warmup_steps=0", "eval.every=1", "eval.problems=4", "checkpoint.every=0"),
    ]


def succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out + ended.err
    return ended


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [select_repeatable(row) for row in read_metrics(folder / "metrics.jsonl")]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_that_goes_on_is_the_longer_run(small: list[str], tmp_path: Path) -> None:
    """To the last bit, its exported model too. Where nothing is left to do it is refused in words."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    words = [*small, *CONSTANT, f"output_dir={folder}"]
    succeeded(run(*words, "steps=2"))
    for more, refusal in (
        (["steps=2"], "holds a finished run of 2 steps; it goes on with more steps (or data.epochs)"),
        (["steps=1"], f"steps=1: the run in output_dir {folder} has done 2 steps; it goes on with more than 2, or rlkit export"),
        (["steps=4", "seed=1"], "holds a run of another recipe; what changed:\n  seed: 0 then, 1 now"),
    ):
        ended = run(*words, *more)
        assert (ended.code, refusal in ended.err) == (2, True), ended.err
    before = metrics(folder)
    gone_on = succeeded(run(*words, "steps=4"))
    assert "after step 2 of 2, to step 4; lr constant 0.003 at step 2, and the same from here on" in gone_on.out
    succeeded(run(*small, *CONSTANT, f"output_dir={whole}"))
    assert metrics(folder)[:3] == before and metrics(folder) == metrics(whole)
    assert read_files(folder / "model") == read_files(whole / "model")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4


def test_more_epochs_follow_the_schedule_of_the_longer_run(pairs: list[str], tmp_path: Path) -> None:
    """16 rows are 4 steps; lr falls to 1e-2 * (0.1 + 0.9 / 4) at step 4, and rises to what step 5 of 8 has."""
    rows = [{"prompt": f"{n}", "chosen": f"{n}{n}", "rejected": "x"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *pairs,
        "steps=null",
        f"data.train={tmp_path / 'rows.jsonl'}",
        "data.test=builtin@test_pairs",
        "optim.lr=1e-2",
        "optim.min_lr_ratio=0.1",
        "optim.schedule=linear",
    ]
    words += ["checkpoint.best=export", "eval.select=loss", f"output_dir={tmp_path / 'run'}"]
    first = succeeded(run(*words, "data.epochs=1")).out
    assert first.index("1 times the rows") < first.index("  steps  4, lr ") < first.index("step 0/4")
    refused = run(*words, "data.epochs=0.5")
    assert (refused.code, "data.epochs=0.5, 2 steps: the run in output_dir" in refused.err) == (2, True), refused.err
    ended = succeeded(run(*words, "data.epochs=2"))
    line = "after step 4 of 4, to step 8; lr linear 0.00325 at step 4, then as in a run of 8 steps: 0.0055 at step 5, 0.00213 at step 8"
    assert line in ended.out
    rates = [Schedule(1e-2, "linear", 0, total, 0.1).lr(step) for total, steps in ((4, range(4)), (8, range(4, 8))) for step in steps]
    found = metrics(tmp_path / "run")
    assert [row["learning_rate"] for row in found[1:]] == rates
    losses = [row["eval/loss"] for row in found]
    best = losses.index(min(losses))
    label = "best of 9 evaluations it was selected on"
    assert f"held-out loss {losses[best]:.3f} after step {best} ({label}); model/ has its weights" in ended.out
    assert [row["eval/best"] for row in found] == [min(losses[: n + 1]) for n in range(9)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["selected"] == {"metric": "loss", "value": losses[best], "step": best, "label": label, "model_step": best}
    assert summary["accuracy_after"] == found[best]["eval/accuracy"]
    assert export.run_export([str(tmp_path / "run"), "step=best", f"to={tmp_path / 'best'}"]) == 0
    assert read_files(tmp_path / "best") == read_files(tmp_path / "run" / "model")


def test_patience_is_counted_over_a_stop_and_on_every_rank(pairs: list[str], tiny_model: Path, tmp_path: Path) -> None:
    """With lr=0 no evaluation is better than the one before training, of which the exported weights are."""
    folder = tmp_path / "run"
    words = [*pairs, "optim.lr=0.0", "eval.patience=3", "checkpoint.best=export", "steps=9", f"output_dir={folder}"]
    stopped = run("SIGTERM", "update", "2", *words, program="struck.py")
    assert (stopped.code, "stopped after step 2 of 9" in stopped.err) == (75, True), stopped.err
    ended = succeeded(run(*words, ranks=2, OMP_NUM_THREADS="1"))
    value = metrics(folder)[0]["eval/accuracy"]
    why = f"stopped early after step 3 of 9: 3 evaluations without a better accuracy than {value:.3f} of step 0 (eval.patience=3)"
    summary = json.loads((folder / "summary.json").read_text())
    assert ended.out.count(why) == 1 and (summary["steps"], summary["stopped_early"]) == (3, why)
    assert [row["eval/since_best"] for row in metrics(folder)] == [0.0, 1.0, 2.0, 3.0]
    assert (folder / "model" / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    for more, refusal in (
        ([], "holds a run that stopped early, of 3 steps; it goes on with a larger eval.patience, or null"),
        (["steps=12"], "stopped early after step 3, and eval.patience=3 would stop it there again"),
    ):
        refused = run(*words, *more)
        assert (refused.code, refusal in refused.err) == (2, True), refused.err
    succeeded(run(*words, "eval.patience=4"))
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 3, 4]
    shutil.rmtree(folder / "checkpoints")
    lost = run(*words, "eval.patience=5")
    assert (lost.code, "holds a finished run without its checkpoints" in lost.err) == (2, True), lost.err
