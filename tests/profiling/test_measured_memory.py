"""What a run without a GPU takes, libraries included, is what its header said: of SmolLM2-135M, and of a model of next to no weights."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, command, environment

GIB, MINUTES = 2**30, 25
# two micro-batches of a step are full; every completion of a random reward has an advantage
STEPS = ["steps=2", "prompts_per_step=14", "samples_per_prompt=8", "max_prompt_tokens=96", "max_completion_tokens=32"]
REST = ["tokens_per_micro_batch=2048", "data.test=null", "eval.every=0", "checkpoint.every=0", "report.roofline=false"]
REWARD = f"rewards.accuracy.path={ROOT / 'tests' / 'programs' / 'toy_reward.py'}:distinct"
REAL = ["model=smollm2_135m_q4", "model.dtype=float32"]


def run_and_watch(words: list[str], log: Path) -> float:
    """GiB of a run's process at its peak from start to end, as the system shows it; a process of its own, which imports its libraries."""
    with log.open("w") as out:
        process = subprocess.Popen(command(*words), stdout=out, stderr=out, env=environment(OMP_NUM_THREADS="1"))
        peak, until = 0.0, time.monotonic() + 60 * MINUTES
        while process.poll() is None and time.monotonic() < until:
            with suppress(OSError, StopIteration, ValueError):  # it has just ended
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max(peak, next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
            time.sleep(0.1)
        process.kill()
    assert process.wait() == 0, log.read_text()
    return peak / GIB


@pytest.mark.nightly(part="matrices")
@pytest.mark.timeout(60 * MINUTES + 60)
@pytest.mark.parametrize(
    "words",
    [REAL, [*REAL, "model.lora.rank=16"], ["model=hf", "engine.rollout=hf"], ["model=hf"]],
    ids=["full", "LoRA", "libraries without vLLM", "libraries"],
)
def test_a_run_takes_what_was_predicted(words: list[str], tiny_model: Path, tmp_path: Path) -> None:
    own = [] if "model=smollm2_135m_q4" in words else [f"model.path={tiny_model}"]
    peak = run_and_watch(["recipe=grpo_math", *words, *own, *STEPS, *REST, REWARD, f"output_dir={tmp_path / 'run'}"], tmp_path / "log.txt")
    row = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    predicted = {phase: row[f"memory/{phase}_predicted_gib"] for phase in ("rollout", "train")}
    measured = {phase: row[f"memory/{phase}_peak_gib"] for phase in ("rollout", "train")}
    print(f"predicted {predicted}, measured {measured}, at the peak of the run {peak:.2f}")
    assert measured == {phase: pytest.approx(size, rel=0.15) for phase, size in predicted.items()}
    assert peak == pytest.approx(max(predicted.values()), rel=0.15)
