"""The command `rlkit`: what it lists, what it passes on, and that help loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import run
from tests.test_laws import HEAVY


def command(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    ended = run(*arguments, module="rlkit.cli.main", cwd=cwd, timeout=60)
    return ended.code, ended.out, ended.err


def test_it_lists_its_commands() -> None:
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    for name in ("run", "export", "reward", "keys", "version"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "--help"), "--multirun, -m"),
        (("export", "--help"), "rlkit export RUN [step=N|best] [to=FOLDER]"),
        (("reward", "--help"), "rlkit reward retry FILE"),
    ],
)
def test_help_of_a_command_is_its_own(words: tuple[str, ...], text: str) -> None:
    code, out, _ = command(*words)
    assert code == 0 and text in out


def test_run_is_the_door_and_passes_words_on(tmp_path: Path) -> None:
    code, out, _ = command("run", "recipe=grpo_math", "steps=3", "--cfg", "job", cwd=tmp_path)
    assert code == 0 and "\nsteps: 3\n" in out
    code, out, err = command("run", "recipe=grpo_math", "sampels_per_prompt=2", "dry_run=true", cwd=tmp_path)
    assert code == 2 and "did you mean samples_per_prompt" in err
    assert list(tmp_path.iterdir()) == []


def test_keys_prints_those_that_speak_of_a_word() -> None:
    code, out, err = command("keys", "warmup")
    assert (code, err) == (0, "")
    assert [line.partition("=")[0] for line in out.splitlines() if not line.startswith(" ")] == [
        "algorithm.critic_warmup_steps",
        "optim.warmup_steps",
    ]
    assert "optim.warmup_steps=0 steps\n    whole number, at least 0\n    in which the learning rate rises" in out
    code, out, err = command("keys", "optim.warmupsteps")
    assert (code, out) == (2, "") and "no key speaks of 'optim.warmupsteps' (did you mean optim.warmup_steps" in err


def test_version_names_what_is_installed() -> None:
    code, out, _ = command("version")
    found = dict(line.split() for line in out.splitlines())
    assert code == 0 and found["rlkit"] == metadata.version("rlkit") and found["torch"] == metadata.version("torch")


def test_what_is_no_command_is_refused() -> None:
    code, _, err = command("trian")
    assert code == 2 and "trian" in err and "Traceback" not in err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom rlkit.cli import main\n"
        "try: main.app(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *HEAVY, "torch"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
