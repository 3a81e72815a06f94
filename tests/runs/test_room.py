"""Memory that is not there, in real runs: the system's limit on the address space, and torch's own allocator that runs into it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import run

LONG = ["prompts_per_step=8", "max_completion_tokens=256", "steps=2", "eval.every=0", "data.test=null"]


def tokens_kept(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in line]


def test_a_budget_far_too_large_is_found_at_start_and_halved(small: list[str], tmp_path: Path) -> None:
    """8 prompts of 48 tokens and 32 completions of 256 are the most that a step brings."""
    folder = tmp_path / "run"
    ended = run("trial", "24", *small, *LONG, "tokens_per_micro_batch=1000000", f"output_dir={folder}", program="starved.py")
    assert ended.code == 0, ended.out + ended.err
    assert "tokens_per_micro_batch=1000000 does not fit into memory; " in ended.out
    fits = int(ended.out.split("does not fit into memory; ")[1].split()[0])
    assert fits in ((8 * 48 + 32 * 256) // 2**n for n in range(1, 5)) and tokens_kept(folder) == [1, 2]


def test_memory_that_runs_out_later_ends_the_attempt_and_the_next_begins_with_half(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*small, *LONG, "checkpoint.every=1", "tokens_per_micro_batch=9728", f"output_dir={folder}"]
    ended = run("update", "6", *arguments, program="starved.py")
    assert ended.code == 1 and "Traceback" not in ended.err, ended.out + ended.err
    assert f"memory ran out in the phase update with tokens_per_micro_batch=9728; start again with output_dir={folder}" in ended.err
    again = run(*arguments)
    assert again.code == 0, again.out + again.err
    assert "tokens_per_micro_batch=9728 ran out of memory before; 4864 is used" in again.out
    assert "goes on after step 1" in again.out and tokens_kept(folder) == [1, 2]


def test_a_process_that_alone_runs_out_of_memory_says_so(small: list[str], tmp_path: Path) -> None:
    """Under ZeRO 3 the other waits for it in a gathering of weights."""
    folder = tmp_path / "run"
    sharded = ["engine.zero_stage=3", "engine.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"]
    arguments = [*small, *LONG, *sharded, "tokens_per_micro_batch=9728", f"output_dir={folder}"]
    ended = run("alone", "16", *arguments, program="starved.py", ranks=2, OMP_NUM_THREADS="1")
    assert ended.code == 1, ended.out + ended.err
    assert (
        "memory ran out in the phase trying the largest micro-batch, and on this process alone, with tokens_per_micro_batch=9728; "
        in ended.err
    )
    assert (folder / "tokens_per_micro_batch").read_text() == "4864"


def test_the_trial_leaves_room_for_what_an_update_holds_beside_its_passes(tmp_path: Path) -> None:
    """2,048 rows take 54 MiB in a pass, and gradients and moments another 40: in 68 the trial alone would find room, and the second
    micro-batch none."""
    out = tmp_path / "found.json"
    ended = run("68", "2048", str(out), program="reserved.py", cold=True, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    result = json.loads(out.read_text())
    assert result.pop("found") in ([1024, 2048], [512, 2048])  # 512 was seen once, beside a full machine
    assert result == {"passes": 4, "ended": "well"}
