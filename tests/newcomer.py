"""The way of a newcomer, timed: a fresh clone, one command that installs and trains, then data of one's own with a reward of one's own.

    .ci/nightly newcomer                                  all of it, in a temporary folder; some ten minutes, most of them the install
    python3 tests/newcomer.py --python .venv/bin/python   only what comes after the install, with an environment that is there

It needs git and Python and nothing else; the clone has the last commit. rlkit makes its model anew, pip may use its cache.
Prints a table of seconds. Exit code 1 where a command fails, a reward did not see the rows, or one of these runs takes over 90 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.own_data import ASKED, REWARD, REWARD_OF_VERL, SHAPES  # noqa: E402  found once the checkout is on the path

OWN_SECONDS = 90.0  # for a run with data and a reward of one's own
LONGEST = 3600.0  # seconds of one command
SMALL = ["steps=2", "prompts_per_step=4", "samples_per_prompt=4", "max_prompt_tokens=128", "max_completion_tokens=32"]  # as on a laptop
WRITE_PARQUET = (
    "import json, sys, pyarrow as pa, pyarrow.parquet as pq; pq.write_table(pa.Table.from_pylist(json.load(sys.stdin)), sys.argv[1])"
)


class Failed(Exception):
    """A step of the protocol did not do what it should."""


class Protocol:
    """The steps, with the seconds of each. folder: empty, where all happens. python: of an environment that is there, else None."""

    def __init__(self, folder: Path, python: str | None) -> None:
        self.folder, self.python = folder, python
        self.rows: list[tuple[str, float]] = []
        self.env = os.environ | {"RLKIT_CACHE": str(folder / "cache")}
        self.env = {name: value for name, value in self.env.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "RLKIT_VENV")}
        if python:
            self.env["PATH"] = f"{Path(python).parent}:{self.env['PATH']}"

    def run(self, step: str, *command: str, cwd: Path) -> str:
        """What a command printed; its seconds are those of the step. Raises Failed where it fails."""
        print(f"... {step}: {' '.join(command)}", flush=True)
        log, began = self.folder / f"{len(self.rows)}.log", time.monotonic()
        with log.open("w") as out:
            done = subprocess.run(command, cwd=cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=LONGEST)
        self.rows.append((step, time.monotonic() - began))
        if done.returncode:
            raise Failed(f"{step}: exit code {done.returncode}\n{log.read_text()[-2000:]}")
        return log.read_text()

    def take_first_steps(self) -> Path:
        """Clone, install and the first run; returns the clone."""
        clone = self.folder / "rlkit"
        if self.python is None:
            self.run("clone", "git", "clone", "--quiet", str(ROOT), str(clone), cwd=self.folder)
            printed = self.run("first run", "bash", "launch/local.sh", "recipe=grpo_math", cwd=clone)
            installed = re.search(r"installed in (\d+) s", printed)
            if installed is None:
                raise Failed("launch/local.sh installed nothing")
            name, seconds = self.rows.pop()
            self.rows += [("install", float(installed[1])), (name, seconds - float(installed[1]))]
            self.python = str(clone / ".venv" / "bin" / "python")
            self.env["PATH"] = f"{Path(self.python).parent}:{self.env['PATH']}"
        else:
            clone.mkdir()
            self.env["PYTHONPATH"] = str(ROOT)
            printed = self.run("first run", self.python, "-m", "rlkit.run", "recipe=grpo_math", cwd=clone)
        change = re.search(r"accuracy before (\S+)  after (\S+)", printed)
        if change is None or float(change[2]) < 0.9:
            raise Failed(f"the first run learned too little: {change[0] if change else 'no line of its accuracy'}")
        print(f"    {change[0]}")
        return clone

    def train_on_own_data(self, clone: Path, shape: str) -> None:
        """One shape of data, with the model of the first run: three keys, and what makes it small."""
        assert self.python is not None
        model = next((clone / "runs" / "grpo_math").iterdir()) / "model"
        place = clone / f"my_{shape}"
        place.mkdir()
        rows = [SHAPES[shape](n) for n in range(2, 10)]
        (place / "my_rewards.py").write_text(REWARD_OF_VERL if shape == "verl" else REWARD)
        if shape == "verl":
            words = [self.python, "-c", WRITE_PARQUET, str(place / "mine.parquet")]
            subprocess.run(words, input=json.dumps(rows), text=True, env=self.env, check=True)
        else:
            (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        name, function = ("mine.parquet", "compute_score") if shape == "verl" else ("mine.jsonl", "score")
        three = [f"model.path={model}", f"data.train={name}", f"rewards.accuracy.path=my_rewards.py:{function}"]
        self.run(f"own data: {shape}", self.python, "-m", "rlkit.run", "recipe=grpo", *three, *SMALL, "output_dir=out", cwd=place)
        samples = [json.loads(line) for line in (place / "out" / "samples.jsonl").read_text().splitlines()]
        for sample in samples:
            number = int(sample["reward"])  # of the row: its answer reached the function
            if ASKED.format(number) not in sample["prompt"] or abs(sample["reward"] - number - len(sample["completion"]) / 1000) > 1e-6:
                raise Failed(f"own data: {shape}: a sample whose reward is not that of its row: {sample}")
        if len(samples) != 32:
            raise Failed(f"own data: {shape}: {len(samples)} samples, not 2 steps x 4 prompts x 4")

    def print_table(self) -> None:
        print(f"\n{'step':<24}{'seconds':>9}{'limit':>7}")
        for step, seconds in self.rows:
            print(f"{step:<24}{seconds:>9.1f}{f'{OWN_SECONDS:.0f}' if step.startswith('own') else '':>7}")
        print(f"{'all':<24}{sum(seconds for _, seconds in self.rows):>9.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with rlkit's libraries: no clone and no install")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rlkit-newcomer-"))
    protocol = Protocol(folder, os.path.abspath(asked.python) if asked.python else None)
    failures: list[str] = []
    try:
        clone = protocol.take_first_steps()
        for shape in SHAPES:
            protocol.train_on_own_data(clone, shape)
    except (Failed, OSError, subprocess.SubprocessError) as failure:
        failures.append(str(failure))
    failures += [
        f"{step} took {s:.0f} s, over {OWN_SECONDS:.0f}" for step, s in protocol.rows if step.startswith("own") and s > OWN_SECONDS
    ]
    protocol.print_table()
    if asked.keep or failures:
        print(f"folder {folder}")
    else:
        shutil.rmtree(folder)
    print("\n".join(["failed", *failures]) if failures else "passed")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
