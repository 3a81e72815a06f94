"""A real pretrained model learns the sums by the shipped grader, and a strict one counts the same completions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

PROGRAMS = ROOT / "tests" / "programs"


@pytest.mark.nightly(part="trainings")
@pytest.mark.timeout(2400)
def test_the_shipped_grader_pays_for_what_a_strict_one_counts(tmp_path: Path) -> None:
    """Thirty steps of GRPO: at every evaluation the two accuracies differ by 0.02 at most."""
    folder = tmp_path / "run"
    words = [
        "model=smollm2_135m_q4",
        "model.dtype=float32",
        "steps=30",
        "prompts_per_step=8",
        "samples_per_prompt=8",
        "optim.lr=1e-5",
        "eval.every=10",
    ]
    words += ["eval.problems=100", f"+rewards.strict={{path: {PROGRAMS / 'strict_reward.py'}:last_number, weight: 0}}"]
    ended = run("recipe=grpo_math", *words, f"output_dir={folder}", timeout=2000)
    assert ended.code == 0, ended.out + ended.err
    scores: dict[int, list[tuple[float, float]]] = defaultdict(list)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "test":
            scores[row["step"]].append((row["rewards"]["accuracy"], row["rewards"]["strict"]))
    means = {step: [sum(values) / len(values) for values in zip(*pairs, strict=True)] for step, pairs in sorted(scores.items())}
    for step in (min(means), max(means)):
        print(f"step {step}: shipped {means[step][0]:.2f}, strict {means[step][1]:.2f}")
        print("\n".join(repr(row["completion"]) for row in [row for row in rows if row["split"] == "test" and row["step"] == step][:10]))
    assert len(means) == 4
    assert all(abs(shipped - strict) <= 0.02 for shipped, strict in means.values()), means
    assert means[max(means)][1] >= means[min(means)][1] + 0.3
