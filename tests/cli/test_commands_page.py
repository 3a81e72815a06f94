"""rlkit/docs/commands.md: it names every command, its commands run, and what it shows is what they print."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_compare import write_run
from tests.cli.test_main import COMMANDS
from tests.conftest import ROOT, run

PAGE = (ROOT / "rlkit" / "docs" / "commands.md").read_text()
CALLS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
OF_MODELS = (
    "rlkit eval",
    "rlkit export",
    "rlkit chat",
    "rlkit serve",
    "rlkit replay",
    "rlkit audit",
)  # run in tests/cli/test_model_commands.py
SWEEP = "rlkit run grpo_math --multirun seed=0,1,2 optim.lr=1e-4,2e-4"  # run in tests/test_readme.py


def test_every_command_is_named() -> None:
    assert sorted(re.findall(r"^\| `rlkit ([^`]*)`", PAGE, re.MULTILINE)) == [" ".join(words) for words in COMMANDS]


@pytest.mark.parametrize("line", [line for line in CALLS if line != SWEEP and not line.startswith(OF_MODELS)])
def test_every_command_runs(line: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / "sweep" / f"seed={seed}", seed=seed)
    ended = run(*shlex.split(line)[1:], module="rlkit.cli.main", cwd=tmp_path, timeout=280)
    assert ended.code == 0, ended.err
    if "--json" in line:
        assert json.loads(ended.out)["differences"] == {"seed": [0, 1]}
    text = next((shown for shown in SHOWN if shown.splitlines()[0] in ended.out), None)
    assert (text is None) == (not line.startswith(("rlkit data show", "rlkit compare")) or "--json" in line)
    assert text is None or text.strip() in ended.out
