"""The command `rlkit`: run, export, reward try, reward retry, keys, version. Each is a file of this folder; overrides are key=value.

Left out: the arguments of run and export, which those commands parse themselves, `--help` included.
"""

from __future__ import annotations

from pathlib import Path

import typer

from rlkit import run as door
from rlkit.cli import version

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
reward_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(reward_app, name="reward")
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
OWN_ARGUMENTS = OVERRIDES | {"help_option_names": list[str]()}  # `--help` is passed on too


@app.callback()
def describe_app() -> None:
    """Aligns language models by reinforcement learning."""


@reward_app.callback()
def describe_reward_app() -> None:
    """Call the rewards of a recipe without training.

    \b
    rlkit reward try recipe=NAME [n=20] [samples=FILE] [key=value ...]
    rlkit reward retry FILE
    """


@app.command("run", context_settings=OWN_ARGUMENTS)
def run_training(context: typer.Context) -> None:
    """Train: recipe=NAME [key=value ...], the same as python -m rlkit.run."""
    door.run_process(context.args)


@app.command("export", context_settings=OWN_ARGUMENTS)
def export_checkpoint(context: typer.Context) -> None:
    """Write the model of a checkpoint: RUN [step=N|best] [to=FOLDER]."""
    from rlkit.cli import export

    raise typer.Exit(export.run_export(context.args))


@reward_app.command("try", context_settings=OVERRIDES)
def try_rewards(context: typer.Context) -> None:
    """Print the scores of a recipe's rewards for rows of its data.

    Loads no model. Each row is tried with the completions that it brings along: its answer in a box (each one of a list of right answers),
    the text that the answer was extracted from, and an empty text. With samples=FILE, the samples.jsonl of a run, the completions are those
    of the run.

    \b
    rlkit reward try recipe=NAME [n=20] [samples=FILE] [key=value ...]
    """
    from rlkit.cli import reward_try

    raise typer.Exit(reward_try.run_try(context.args))


@reward_app.command("retry")
def retry_reward(file: Path) -> None:
    """Call a reward again with the sample that stopped a run.

    It runs in this process, with its prints. FILE: the file that the run wrote.
    """
    from rlkit.cli import reward_retry

    raise typer.Exit(reward_retry.run_retry(file))


@app.command("keys")
def print_keys(word: str = typer.Argument("", help="a part of a key, or of what it does")) -> None:
    """Print the keys of recipes: value, unit, default, meaning. All of them, or those that speak of WORD."""
    from rlkit.cli import keys

    raise typer.Exit(keys.run_keys(word))


@app.command("version")
def print_versions() -> None:
    """Print the versions of rlkit and of the libraries that it uses."""
    print(version.format_versions())


if __name__ == "__main__":
    app()
