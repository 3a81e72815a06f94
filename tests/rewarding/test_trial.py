"""Rewards by hand: the table, and its messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rlkit.rewarding import RewardSettings, RewardSpec
from rlkit.rewarding.trial import trial


def test_table_of_rows_with_and_without_completions(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def brief(completion): return 10 / len(completion)\n")
    rows = [{"answer": "5"}, {"answer": "7", "completion": "it is 7"}]
    table = trial([RewardSpec("accuracy", "accuracy"), RewardSpec("brief", f"{file}:brief", 0.5)], RewardSettings(), rows).splitlines()
    assert table[0].split() == ["completion", "accuracy", "brief", "reward", "seconds"]
    assert table[1].split()[:4] == ['"\\\\boxed{5}"', "1", "1.111", "1.556"]
    assert table[2].split()[:4] == ['""', "0", "error", "-"]
    assert table[3].rsplit(maxsplit=4)[1:4] == ["1", "1.429", "1.714"]
    assert table[5] == "brief: error" and table[-1] == "ZeroDivisionError: division by zero"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-m", "rlkit.rewarding", *arguments], cwd=here, capture_output=True, text=True, timeout=100)


def test_command_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": "q", "answer": str(n)}) + "\n" for n in range(30)))
    done = command("try", "accuracy", "exact_match", "--rows", str(rows), "--n", "3")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 7)
    assert done.stdout.splitlines()[1].split()[:4] == ['"\\\\boxed{0}"', "1", "0", "1"]


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{broken\n")
    for arguments, told in [
        (("try", "acuracy", "--rows", str(rows)), "cannot be read as JSONL"),
        (("try", "accuracy", "--rows", str(tmp_path / "none.jsonl")), "No such file"),
        (("replay", str(rows)), "is no file that a run wrote to be replayed"),
    ]:
        done = command(*arguments)
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1
