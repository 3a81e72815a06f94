"""Whole runs of the real command: the three memory modes, sampler beside trainer, memory, stop and resume, LoRA."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.gpu.models import REWARD, find_model, find_rows
from tests.gpu.table import Measured

DIFFERENCE = "sampling/sampling_logp_difference/mean"
BRIEF = ["eval.every=0", "checkpoint.every=0", "report.roofline=false", "optim.schedule=constant"]
SMALL = ["engine.rollout=hf", "prompts_per_step=4", "samples_per_prompt=4", "max_completion_tokens=16", "tokens_per_micro_batch=512"]
SMALL += ["max_prompt_tokens=120"]
STEP = ["prompts_per_step=64", "samples_per_prompt=8", "max_prompt_tokens=120", "max_completion_tokens=512", "tokens_per_micro_batch=8192"]
MISMATCH = 0.1  # nats in the mean, in bfloat16: what stops a run
MEMORY = 0.15  # of the peaks, between what was predicted and measured
ALIKE = (
    0.02,
    0.08,
)  # of a mean reward of 0 to 1, between memory modes: in the first step, where samples have the same seeds and weights, and
# in later ones, whose weights differ by the order of sums; of 384 other samples of the same policy it would be 0.025
FEW = ["prompts_per_step=16"]  # where a step is only to be taken
Rows = list[dict[str, Any]]


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    """A run in a folder, its output in the log beside it."""
    command = [sys.executable, "-m", "rlkit.run", *words, f"output_dir={out}"]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=os.environ | {"NO_COLOR": "1"})


def run(words: list[str], out: Path) -> Rows:
    """The training steps of a whole run in a new folder. Raises RuntimeError with its last lines where it fails."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    code = start(words, out).wait()
    if code:
        raise RuntimeError(f"exit code {code}: {' / '.join(out.with_suffix('.log').read_text().splitlines()[-4:])}")
    return read_steps(out)


def read_steps(out: Path) -> Rows:
    """The rows of metrics.jsonl that belong to a training step."""
    file = out / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row for row in rows if "reward" in row]


def build_words(model: str, small: bool, folder: Path, steps: int, *more: str) -> list[str]:
    """The command of a run on random rows with a random model."""
    data = [f"model.path={find_model(model, small, folder)}", f"data.train={find_rows(folder)}", "data.test=null", REWARD]
    return ["recipe=grpo_math", *data, f"steps={steps}", *BRIEF, *(SMALL if small else STEP), *more]


def check_modes(small: bool, folder: Path) -> Measured:
    """The built-in task, or in small a random model, which on a CPU has no other mode than resident."""
    task = build_words("small", True, folder, 2) if small else ["recipe=grpo_math", "steps=4", "data.test=null", *BRIEF]
    modes = ("resident", "sleep_and_offload") if small else ("resident", "sleep", "sleep_and_offload")
    rewards = [[row["reward"] for row in run([*task, f"engine.memory={mode}"], folder / "runs" / f"modes-{mode}")] for mode in modes]
    apart = [[abs(a - b) for a, b in zip(rewards[0], other, strict=True)] for other in rewards[1:]]
    figures: dict[str, float | str] = {"first reward": rewards[0][0]}
    for mode, (first, *later) in zip(modes[1:], apart, strict=True):
        figures |= {f"{mode} 1": first, f"{mode} later": max(later)}
    alike = all(first <= ALIKE[0] and max(later) <= ALIKE[1] for first, *later in apart)
    return Measured(figures, f"rewards within {ALIKE[0]} of those of resident in step 1, {ALIKE[1]} later", alike)


def check_mismatch(small: bool, folder: Path) -> Measured:
    figures: dict[str, float | str] = {}
    for temperature in (0.7,) if small else (1.0, 0.7):
        words = build_words("0_5b", small, folder, 2, f"sampling.temperature={temperature}")
        rows = run(words, folder / "runs" / f"mismatch-{temperature}")
        figures[f"T {temperature}"] = max(row[DIFFERENCE] for row in rows)
    limit = 1e-4 if small else MISMATCH
    return Measured(figures, f"log-probs at most {limit:g} nats apart in the mean", max(map(float, figures.values())) <= limit)


def check_memory(small: bool, folder: Path) -> Measured:
    """Peaks in GiB at the steps 1, before which the optimizer has no moments, and 3. On a CPU nothing is bounded."""
    words = build_words("1_5b", small, folder, 3 if small else 5, *([] if small else ["report.roofline=true"]))
    rows = run(words, folder / "runs" / "memory")
    figures: dict[str, float | str] = {}
    apart = [0.0]
    for step in (1, 3):
        for phase in ("rollout", "train"):
            found, predicted = (rows[step - 1][f"memory/{phase}_{kind}_gib"] for kind in ("peak", "predicted"))
            figures[f"{phase} {step}"] = f"{found:.2f} of {predicted:.2f}"
            apart.append(abs(found / predicted - 1))
    figures["worst"] = max(apart)
    if not small:
        figures["MFU"] = rows[-1]["throughput/mfu"]
    return Measured(figures, f"within {MEMORY:.0%} of what was predicted", small or max(apart) <= MEMORY)


def check_resume(small: bool, folder: Path) -> Measured:
    """SIGTERM after the second of several steps: exit code 75; then the same command ends with 0, and no step is missing or there twice."""
    out, count = folder / "runs" / "resume", 20 if small else 6
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = build_words("0_5b", small, folder, count, *([] if small else FEW))
    first = start(words, out)
    while first.poll() is None and len(read_steps(out)) < 2:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    codes = [first.wait()]
    stopped = len(read_steps(out))
    codes.append(start(words, out).wait())
    steps = [row["step"] for row in read_steps(out)]
    figures: dict[str, float | str] = {"exit codes": str(codes), "stopped after": float(stopped), "steps": f"{steps[0]} to {steps[-1]}"}
    whole = all(b == a + 1 for a, b in pairwise(steps)) and len(steps) == count
    return Measured(figures, f"exit codes 75 and 0; {count} steps, one after the other", codes == [75, 0] and whole)


def check_lora(small: bool, folder: Path) -> Measured:
    lora = ["model.lora.rank=32", "engine.memory=sleep_and_offload", "engine.gradient_checkpointing=1", "optim.lr=2e-5"]
    lora += [] if small else FEW
    rows = run(build_words("7b", small, folder, 2, *lora), folder / "runs" / "lora")
    return measure_steps(rows, small)


def check_adapter(small: bool, folder: Path) -> Measured:
    """Adapters sent as such; transformers' generate, the engine of the small form, takes merged weights alone."""
    sync = [] if small else ["engine.lora_sync=adapter"]
    rows = run(build_words("0_5b", small, folder, 2, "model.lora.rank=16", "optim.lr=1e-4", *sync), folder / "runs" / "adapter")
    return measure_steps(rows, small)


def measure_steps(rows: Rows, small: bool) -> Measured:
    """Sampler beside trainer in the last step, after an update, and what it took."""
    last, limit = rows[-1], 1e-4 if small else MISMATCH
    figures: dict[str, float | str] = {"log-probs": last[DIFFERENCE], "seconds": last["time/step"]}
    figures |= {f"{phase} GiB": last[f"memory/{phase}_peak_gib"] for phase in ("rollout", "train")}
    return Measured(figures, f"log-probs at most {limit:g} nats apart in the mean, after an update", last[DIFFERENCE] <= limit)
