"""The command `rlkit`: what it lists, what it passes on, and that help loads nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rlkit.cli import main
from rlkit.config.compose import list_options
from tests.cli.conftest import call
from tests.conftest import run
from tests.test_laws import HEAVY


def command(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    ended = run(*arguments, module="rlkit.cli.main", cwd=cwd, timeout=60)
    return ended.code, ended.out, ended.err


def shown_help(*words: str) -> str:
    answer = CliRunner().invoke(main.app, [*words, "--help"], prog_name="rlkit", terminal_width=80)
    assert answer.exit_code == 0
    return answer.output


def list_commands(app: typer.Typer = main.app, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for command in app.registered_commands:
        yield (*before, str(command.name))
    for group in app.registered_groups:
        assert group.typer_instance
        yield from list_commands(group.typer_instance, (*before, str(group.name)))


COMMANDS = sorted(list_commands())


def test_it_lists_its_commands_by_what_they_are_for() -> None:
    out = shown_help()
    for command in COMMANDS:
        assert re.search(rf"^  {' '.join(command)} +[A-Z].*\.$", out, re.MULTILINE), command  # a whole sentence, on one line
    headings = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert [name for name in headings if name != "Options"] == [main.TRAIN, main.LOOK, main.MODELS, main.MACHINE]


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_help_fits_eighty_columns_and_shows_usage_and_an_example(command: tuple[str, ...]) -> None:
    out = shown_help(*command)
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith(" ".join(("Usage: rlkit", *command)))
    assert not command or re.search(rf"\n  Example:\n    rlkit {' '.join(command)}\b", out)


@pytest.mark.parametrize(
    ("words", "line"),  # what bash, which takes = for the end of a word, and what zsh asks for
    [
        (["run", "gspo"], ["gspo_math"]),
        (["run", "recipe=gspo"], ["recipe=gspo_math"]),
        (["run", "recipe", "=", "gspo"], ["gspo_math"]),
        (["run", "recipe", "="], list_options("recipe", None)),
        (["reward", "tr"], ["try"]),
    ],
)
def test_the_shell_completes_commands_and_recipes(words: list[str], line: list[str]) -> None:
    env = {"_RLKIT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["rlkit", *words]), "COMP_CWORD": str(len(words))}
    answer = CliRunner().invoke(main.app, [], prog_name="rlkit", env=env)
    assert answer.output.split() == line


def test_run_is_the_door_and_passes_words_on(tmp_path: Path) -> None:
    code, out, _ = command("run", "recipe=grpo_math", "steps=3", "--cfg", "job", cwd=tmp_path)
    assert code == 0 and "\nsteps: 3\n" in out
    code, out, err = command("run", "recipe=grpo_math", "sampels_per_prompt=2", "dry_run=true", cwd=tmp_path)
    assert code == 2 and "did you mean samples_per_prompt" in err
    assert list(tmp_path.iterdir()) == []


def test_keys_prints_those_that_speak_of_a_word() -> None:
    code, out, err = call("keys", "warmup")
    assert (code, err) == (0, "")
    assert [line.partition("=")[0] for line in out.splitlines() if not line.startswith(" ")] == [
        "algorithm.critic_warmup_steps",
        "optim.warmup_steps",
    ]
    assert "optim.warmup_steps=0 steps\n    number, at least 0\n    in which the learning rate rises" in out
    code, out, _ = call("keys", "warmup", "--json")
    assert [entry["default"] for entry in json.loads(out)["keys"]] == ["2", "0"]
    code, out, err = call("keys", "num_generations")
    assert (code, out) == (2, "") and "num_generations (TRL) is samples_per_prompt here" in err
    code, out, err = call("keys", "optim.warmupsteps", "--json")
    assert (code, out) == (2, "") and "no key speaks of 'optim.warmupsteps' (did you mean optim.warmup_steps" in err


def test_version_names_what_is_installed() -> None:
    code, out, _ = call("version")
    found = dict(line.split() for line in out.splitlines())
    assert json.loads(call("version", "--json")[1]) == found
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
