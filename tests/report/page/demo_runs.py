"""Folders of runs with invented but likely numbers, for the page: learning, failed, stopped, lost, and one with hostile text.

`python -m tests.report.page.demo_runs FOLDER` writes them, to look at with `rlkit watch FOLDER`.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlkit.report.folder import RunFolder
from rlkit.report.status import RunStatus, describe_process, write_run_status

HOSTILE = (
    "<script>window.hacked=1</script></script><img src=x onerror=window.hacked=2> \x1b]52;c;aGk=\x07 \u202egnp.exe\u2066 a\u200bb \x00"
)
RECIPE: dict[str, Any] = {
    "recipe": "grpo_gsm8k",
    "seed": 0,
    "steps": 120,
    "samples_per_prompt": 8,
    "model": {"path": "Qwen/Qwen2.5-0.5B-Instruct", "lora": {"rank": None}},
    "algorithm": {"name": "grpo", "kl_coef": 0.001, "clip_low": 0.2, "clip_high": 0.28},
    "optim": {"lr": 1e-6, "warmup_steps": 5},
    "rewards": {"accuracy": {"path": "accuracy", "weight": 1.0}, "format_tags": {"path": "format_tags", "weight": 0.2}},
}


def build_row(step: int, rng: random.Random, speed: float, steps: int) -> dict[str, float]:
    """The metrics of one step of a run that learns; `speed`: how fast."""
    learned = 0.36 + 0.5 * (1 - math.exp(-speed * step / steps))
    accuracy = min(1.0, max(0.0, learned + rng.gauss(0, 0.03)))
    form = min(1.0, 0.3 + 0.7 * (1 - math.exp(-4 * speed * step / steps)) + rng.gauss(0, 0.01))
    length = 210 + 60 * step / steps + rng.gauss(0, 8)
    seconds = {"sync": 0.4, "rollout": 11 * length / 220, "observe": 2.1, "update": 6.2, "resume": 0.05}
    timed = {f"time/{phase}": value * rng.uniform(0.93, 1.08) for phase, value in seconds.items()}
    rewards = {"accuracy": accuracy, "format_tags": form}
    return {
        "reward": accuracy + 0.2 * form,
        "reward_std": 0.33 * math.sqrt(accuracy * (1 - accuracy)) + 0.05,
        **{f"rewards/{name}/mean": value for name, value in rewards.items()},
        **{f"rewards/{name}/failure_rate": 0.0 for name in rewards},
        "frac_reward_zero_std": min(0.95, 0.25 + 0.65 * (step / steps) ** 2 + rng.gauss(0, 0.02)),
        "rewards_failed": 0.0,
        "entropy": 0.62 * math.exp(-1.5 * step / steps) + rng.gauss(0, 0.008),
        "kl": 0.0005 * step + abs(rng.gauss(0, 0.002)),
        "grad_norm": 0.4 + abs(rng.gauss(0, 0.1)),
        "loss": rng.gauss(0, 0.01),
        "learning_rate": 1e-6,
        "clip_ratio/low_mean": abs(rng.gauss(0.001, 0.0005)),
        "clip_ratio/high_mean": abs(rng.gauss(0.002, 0.0006)),
        "completions/mean_length": length,
        "completions/min_length": length * 0.3,
        "completions/max_length": min(512.0, length * 2.1),
        "completions/clipped_ratio": max(0.0, rng.gauss(0.03, 0.01)),
        "sampling/sampling_logp_difference/mean": abs(rng.gauss(0.008, 0.001)),
        "sampling/compared_tokens": 50_000.0,
        "sampling/effective_sample_size": 0.99,
        "memory/rollout_peak_gib": 61.0,
        "memory/train_peak_gib": 48 + length / 60,
        "memory/rollout_predicted_gib": 62.5,
        "memory/train_predicted_gib": 53.0,
        "memory/process_gib": 9.4,
        "throughput/tokens_per_second": 11000 + rng.gauss(0, 300),
        "time/reward_p50": 0.4,
        "time/reward_p99": 17.0,
        **timed,
        "time/step": sum(timed.values()),
    }


def build_held_out(accuracy: float) -> dict[str, float]:
    return {"eval/accuracy": accuracy, "eval/accuracy_low": accuracy - 0.04, "eval/accuracy_high": accuracy + 0.04, "time/evaluation": 9.0}


def build_tokens(text: str, rng: random.Random) -> dict[str, list[Any]]:
    """Tokens as samples.jsonl holds them for a few samples a step."""
    words = [word for part in text.split(" ") for word in (part, " ")][:-1]
    trainer: list[float | None] = [-abs(rng.gauss(0, 0.8)) for _ in words]
    sampler = [value + rng.gauss(0, 0.15) for value in trainer if value is not None]
    return {
        "ids": [rng.randrange(150_000) for _ in words],
        "text": words,
        "logprobs": trainer,
        "rollout_logprobs": sampler,
        "entropies": [abs(rng.gauss(0, 0.7)) for _ in words],
    }


def build_samples(step: int, rng: random.Random, prompts: int = 4, note: str = "") -> list[dict[str, Any]]:
    """A step's samples: groups of four, two samples with their tokens."""
    rows = []
    for prompt in range(prompts):
        eggs, days = rng.randrange(3, 30), rng.randrange(2, 9)
        for draw in range(4):
            right = rng.random() < 0.6
            total = eggs * days + (0 if right else rng.choice((-1, 1, eggs)))
            text = (
                f"A hen lays {eggs} eggs a day. After {days} days that is {eggs} x {days} = {total} eggs.\n"
                f"So there are \\boxed{{{total}}} eggs in the basket. {note}"
            )
            row = {
                "split": "train",
                "key": [prompt, step, draw, 0],
                "prompt": f"user\nA hen lays {eggs} eggs every day. How many eggs are there after {days} days? {note}\nassistant\n",
                "completion": text,
                "reward": 1.2 if right else 0.2,
                "rewards": {"accuracy": float(right), "format_tags": 1.0},
                "advantage": 0.7 if right else -0.9,
                "stop": "eos",
                "version": max(0, step - 1),
                "answer": str(eggs * days),
                "extra": {"source": f"gsm8k/{prompt}"},
            }
            rows.append(row | ({"tokens": build_tokens(text, rng)} if draw < 2 else {}))
    return rows


def write_demo_run(
    folder: Path,
    *,
    steps: int = 120,
    planned: int | None = None,
    state: str = "done",
    why: str | None = None,
    seed: int = 0,
    speed: float = 3.0,
    note: str = "",
    recipe: Mapping[str, Any] = RECIPE,
) -> Path:
    """A run as a real one leaves it. state: lost is a running one whose process is gone."""
    rng, written, began = random.Random(seed), RunFolder(folder), time.time() - 21 * steps
    for step in range(steps + 1):
        due = step == 0 or step % 20 == 0
        row = (build_row(step, rng, speed, planned or steps) if step else {}) | (
            {} if not due else build_held_out(0.33 + 0.45 * step / 120)
        )
        if step and (step % 10 == 0 or step < 4):
            written.append_samples(step, build_samples(step, rng, note=note))
        written.append_metrics(step, {**row, "time/clock": began + 21 * step})
    written.write_text("recipe.yaml", yaml.safe_dump({**recipe, "seed": seed, "steps": planned or steps, "output_dir": str(folder)}))
    written.close()
    process = describe_process() | ({"process_started": 1.0} if state == "lost" else {})
    now = time.time()
    status = RunStatus("running" if state == "lost" else state, planned or steps, steps, "rollout", why, 1, began, now, **process)
    write_run_status(folder, status)
    return folder


def write_demo_runs(folder: Path) -> Path:
    """One run of each kind."""
    write_demo_run(folder / "grpo_gsm8k" / "2026-11-26_18-04-11", planned=200, state="running", seed=1)
    write_demo_run(
        folder / "grpo_gsm8k" / "2026-11-25_09-30-52", seed=2, speed=1.5, recipe={**RECIPE, "optim": {"lr": 5e-7, "warmup_steps": 0}}
    )
    why = "RunFailed: reward accuracy failed for 8 % of the samples of step 37, more than rewarding.max_failure_rate=0.05"
    write_demo_run(folder / "grpo_gsm8k" / "2026-11-24_22-10-03", steps=36, planned=120, state="failed", why=why, seed=3)
    write_demo_run(folder / "sweep" / "seed=0", steps=64, planned=120, state="stopped", why="stopped after step 64 of 120, saved", seed=4)
    write_demo_run(folder / "sweep" / "seed=1", steps=12, planned=120, state="lost", seed=5)
    write_demo_run(
        folder / f"hostile {HOSTILE.partition(' ')[0].replace('/', '_')}\u202e",
        steps=4,
        state="failed",
        why=HOSTILE,
        note=HOSTILE,
        recipe={**RECIPE, "recipe": HOSTILE, "note": HOSTILE},
    )
    return folder


if __name__ == "__main__":
    write_demo_runs(Path(sys.argv[1]))
