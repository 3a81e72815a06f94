"""Whether two checkouts are one to the bit: python -m tests.bench.side_by_side FOLDER [recipe ...]

Runs six steps of each recipe (grpo_math, ppo_math, dpo_math) from the checkout in FOLDER and from this one, one after the other on this
machine, and compares every metric but those of the machine, and every sample. Prints a digest of each; exit code 1 where two differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rlkit.report.folder import read_metrics, read_rows
from tests.conftest import ROOT
from tests.repeatable import select_repeatable

RECIPES = ("grpo_math", "ppo_math", "dpo_math")
SIZE = ("steps=6", "seed=0", "eval.every=3", "eval.problems=100")


def digest(checkout: Path, recipe: str) -> str:
    """Of the metrics and samples of a run of the code in a checkout."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        command = [sys.executable, "-m", "rlkit.run", f"recipe={recipe}", *SIZE, f"output_dir={folder}"]
        subprocess.run(command, cwd=place, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.DEVNULL)
        metrics = [select_repeatable(row) for row in read_metrics(folder / "metrics.jsonl")]
        samples = read_rows(folder / "samples.jsonl") if (folder / "samples.jsonl").exists() else []
    assert len(metrics) == 7
    return hashlib.sha256(json.dumps([metrics, samples], sort_keys=True).encode()).hexdigest()[:16]


def main(other: Path, recipes: tuple[str, ...]) -> int:
    """Returns the exit code."""
    differ = 0
    for recipe in recipes:
        digests = [digest(checkout, recipe) for checkout in (other, ROOT)]
        same = digests[0] == digests[1]
        differ += not same
        print(f"{recipe}: {digests[0]} {'=' if same else '!='} {digests[1]}", flush=True)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), tuple(sys.argv[2:]) or RECIPES))
