"""rlkit/docs/gpu.md: its commands are valid, and its memory by hand is what the plan says."""

from __future__ import annotations

import re
import shlex

import pytest

from rlkit.assembly import plan
from rlkit.config.compose import compose_config
from rlkit.config.recipe import Recipe, read_recipe
from rlkit.profiling import memory_estimate
from tests.conftest import ROOT
from tests.gpu.checks import CHECKS, PARTS

PAGE = (ROOT / "rlkit" / "docs" / "gpu.md").read_text()
SHELL = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition(" #")[0].strip() for block in SHELL for line in block.replace("\\\n", " ").splitlines()]
ELSEWHERE = {"nvidia-smi", 'pip install -e ".[gpu,liger]"', "python -m tests.bench.grpo_step --vllm --kind 1.5b"}
BY_HAND = re.findall(r"### ([^\n]*)\n\n```bash\npython -m rlkit\.run (.*?)\n```\n(.*?\| \*\*sum\*\* [^\n]*)", PAGE, re.DOTALL)
PHASES = ("sync", "rollout", "train")


def read_words(command: str) -> Recipe:
    """The recipe of a command that is only planned; of a multirun the first."""
    words = [word.split(",")[0] if word.startswith("seed=") else word for word in shlex.split(command.replace("\\\n", " "))]
    return read_recipe(compose_config([*(word for word in words if word not in ("--multirun", "dry_run=true")), "dry_run=true"], None))


def test_every_command_is_valid() -> None:
    runs = [c for c in COMMANDS if c.startswith(("python -m rlkit.run ", "bash launch/local.sh "))]
    checks = [c for c in COMMANDS if c.startswith("python -m tests.gpu ")]
    assert set(COMMANDS) - set(runs) - set(checks) == ELSEWHERE and len(runs) >= 11
    for command in runs:
        assert read_words(re.split(r"rlkit\.run |local\.sh ", command)[1]).recipe
    assert {word for command in checks for word in shlex.split(command)[3:] if not word.startswith("--")} == {*PARTS, "runs/gpu"}
    listed = re.findall(r"^\| ([\d, abc]+) \| ([\w, ]+) \|", re.sub(r"```text.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE)
    assert [number for row, _ in listed for number in row.split(", ")] == [check.number for check in CHECKS.values()]
    assert [name for _, row in listed for name in row.split(", ")] == list(CHECKS)


def read_table(text: str) -> list[list[float]]:
    """GB, and GiB in each phase, of each row; an empty cell is 0."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if re.match(r"\| [^-]", line)][1:]
    padded = [[*row, *[""] * (6 - len(row))] for row in rows]
    return [[float(cell) if cell.strip() else 0.0 for cell in row[2:]] for row in padded]


@pytest.mark.parametrize(("title", "command", "text"), BY_HAND, ids=[title for title, *_ in BY_HAND])
def test_the_plan_is_the_reckoning_by_hand(title: str, command: str, text: str) -> None:
    *terms, total = read_table(text)
    for gb, *phases in terms:
        assert all(gib == pytest.approx(gb * 1e9 / 2**30, abs=0.011) for gib in phases if gib), (gb, phases)
    sums = [sum(column) for column in zip(*(phases for _, *phases in terms), strict=True)]
    assert total[1:] == pytest.approx(sums, abs=0.03)
    recipe = read_words(command)
    job, gpu = plan.build_job(recipe), plan.find_gpu_memory(recipe)
    assert job is not None and gpu is not None
    found = memory_estimate.plan_memory(job, gpu, recipe.engine.memory)
    assert {phase: found.peaks[phase] / 2**30 for phase in PHASES} == {
        phase: pytest.approx(gib, rel=0.05) for phase, gib in zip(PHASES, total[1:], strict=True)
    }
    assert found.fits == ("It fits" in text) and ("It does not fit" in text) == (not found.fits)


def test_there_are_the_reckonings_of_three_machines() -> None:
    assert [re.findall(r"\d+B|\d+ GB", title) for title, *_ in BY_HAND] == [
        ["7B", "141 GB"],
        ["7B", "24 GB"],
        ["7B", "24 GB"],
        ["32B", "80 GB"],
    ]
