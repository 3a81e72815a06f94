"""Calls of the command `rlkit` within this process, for those that load nothing heavy."""

from __future__ import annotations

from typer.testing import CliRunner

from rlkit.cli import main


def call(*words: str, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `rlkit WORDS`."""
    answer = CliRunner().invoke(main.app, list(words), prog_name="rlkit", env=env)
    if answer.exception and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.stdout, answer.stderr
