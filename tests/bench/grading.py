"""Grading beside bare math-verify, on one core: python -m tests.bench.grading

Each grades the same completions in turn: the pairs of tests/rewards, and GSM8K's own answers where RLKIT_GSM8K names its folder. Every
completion is new to both, since the graders keep what they have compared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from rlkit.rewarding.resolve import import_reward

PAIRS = Path(__file__).parents[1] / "rewards" / "independent.jsonl"
ENDLESS = ("giant", "large_integer", "exact_rational", "factorial", "binomial")  # kinds on some of which math-verify works for minutes
BLOCK = 50  # completions that one side grades before the other: the machine's speed changes slowly


def read_samples() -> dict[str, list[tuple[str, str]]]:
    """By the name of a set: completions and references."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["reward"] == "accuracy" and isinstance(row["answer"], str) and row["kind"] not in ENDLESS]
    sets = {"pairs": [(row["completion"], row["answer"]) for row in rows]}
    if folder := os.environ.get("RLKIT_GSM8K"):
        lines = (Path(folder) / "test.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line)["answer"] for line in lines]
        sets["gsm8k"] = [(f"{text}\nThe answer is {text.rpartition('####')[2]}.", text.rpartition("####")[2].strip()) for text in answers]
    return sets


def measure(grade: Callable[..., float], samples: list[tuple[str, str]]) -> float:
    """CPU seconds for all samples. A reference that a grader cannot read is an error of its own, and costs what it costs."""
    started = time.process_time()
    for completion, answer in samples:
        try:
            grade(completion=completion, answer=answer)
        except ValueError:
            continue
    return time.process_time() - started


def main() -> None:
    graders = {name: import_reward(name) for name in ("accuracy", "math_verify_score")}
    for name, samples in read_samples().items():
        seconds = dict.fromkeys(graders, 0.0)
        for start in range(0, len(samples), BLOCK):
            for grader, grade in graders.items():
                seconds[grader] += measure(grade, samples[start : start + BLOCK])
        each = {grader: f"{1e3 * total / len(samples):.2f} ms" for grader, total in seconds.items()}
        ratio = seconds["math_verify_score"] / seconds["accuracy"]
        print(f"{name}: {len(samples)} completions, {each}, math-verify / rlkit = {ratio:.2f}")


if __name__ == "__main__":
    main()
