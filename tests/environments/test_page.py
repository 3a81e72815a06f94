"""rlkit/docs/environments.md: its environment is the one that its commands play, they run, and what it shows is what they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.environments.loading import SHIPPED
from tests.conftest import ROOT, environment, run

PAGE = (ROOT / "rlkit" / "docs" / "environments.md").read_text()
CALLS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
(SHOWN,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def play_line(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "my_env.py").write_text(CODE)
    command = line.replace("rlkit env", f"{sys.executable} -m rlkit.cli.main env")
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("line", CALLS)
def test_every_command_runs(line: str, tmp_path: Path) -> None:
    if line.startswith("python -m rlkit.run"):
        planned = run(*shlex.split(line)[3:], "dry_run=true", cwd=tmp_path)
        assert planned.code == 0 and "it answers" in planned.out, planned.err
        return
    ended = play_line(line, tmp_path)
    assert ended.returncode == 0, ended.stderr
    if "guess number=6" in line:
        assert ended.stdout == SHOWN
        assert "class of tools, with a reward" in ended.stderr and "tool guess(number: integer)  Guess the number." in ended.stderr
    assert "guess_number" not in line or ended.stdout.endswith("reward 0, guesses 2\n")


def test_every_shipped_environment_is_named() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \| (?:function|class|`reset)", PAGE, re.MULTILINE)) == sorted(SHIPPED)
