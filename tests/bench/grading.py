"""Grading beside bare math-verify, on one core: python -m tests.bench.grading

Each grades the same completions in turn: the pairs of tests/rewards, and GSM8K's own answers where RLKIT_GSM8K names its folder. Every
completion is new to both, since the graders keep what they have compared.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rlkit.rewarding.resolve import import_reward

PAIRS = Path(__file__).parents[1] / "rewards" / "independent.jsonl"
KINDS = ("integer", "money", "percent", "fraction", "decimal", "mixed", "root", "polynomial", "interval", "set", "tuple", "unit", "several")
LIMIT = 2.0  # seconds for a completion. Kinds with large powers are left out: some of their answers cannot be cut off in math-verify
BLOCK = 50  # completions that one side grades before the other: the machine's speed changes slowly


def read_samples() -> dict[str, list[tuple[str, str]]]:
    """By the name of a set: completions and references."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["reward"] == "accuracy" and isinstance(row["answer"], str) and row["kind"] in KINDS]
    sets = {"pairs": [(row["completion"], row["answer"]) for row in rows]}
    if folder := os.environ.get("RLKIT_GSM8K"):
        lines = (Path(folder) / "test.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line)["answer"] for line in lines]
        sets["gsm8k"] = [(f"{text}\nThe answer is {text.rpartition('####')[2]}.", text.rpartition("####")[2].strip()) for text in answers]
    return sets


def measure(grade: Callable[..., float], samples: list[tuple[str, str]]) -> tuple[float, int]:
    """CPU seconds for all samples, and how many were cut off. A reference that a grader cannot read costs what its error costs."""
    started, cut = time.process_time(), 0
    for completion, answer in samples:
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT, 0.1)  # math-verify catches the first
        try:
            grade(completion=completion, answer=answer)
        except ValueError:
            pass
        except TimeoutError:
            cut += 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return time.process_time() - started, cut


def stop(number: int, frame: object) -> None:
    raise TimeoutError


def main() -> None:
    graders = {name: import_reward(name) for name in ("accuracy", "math_verify_score")}
    signal.signal(signal.SIGVTALRM, stop)
    for name, samples in read_samples().items():
        seconds, cut = dict.fromkeys(graders, 0.0), dict.fromkeys(graders, 0)
        for start in range(0, len(samples), BLOCK):
            for grader, grade in graders.items():
                taken, stopped = measure(grade, samples[start : start + BLOCK])
                seconds[grader] += taken
                cut[grader] += stopped
        each = ", ".join(f"{grader} {1e3 * total / len(samples):.2f} ms ({cut[grader]} cut off)" for grader, total in seconds.items())
        print(f"{name}: {len(samples)} completions, {each}, math-verify / rlkit = {seconds['math_verify_score'] / seconds['accuracy']:.2f}")


if __name__ == "__main__":
    main()
