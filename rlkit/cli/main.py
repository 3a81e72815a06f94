"""The command `rlkit`: run, export, reward, version. Each command is a file of this folder; overrides stay key=value.

Left out: what the words of a command mean, which its file says, with `--help` too.
"""

from __future__ import annotations

import typer

from rlkit import run as door
from rlkit.cli import version as versions

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
WORDS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}  # the command reads its own


@app.callback()
def rlkit() -> None:
    """Aligns language models by reinforcement learning."""


@app.command(context_settings=WORDS)
def run(context: typer.Context) -> None:
    """Train: rlkit run recipe=NAME [key=value ...], the same as python -m rlkit.run."""
    door.run_process(context.args)


@app.command(context_settings=WORDS)
def export(context: typer.Context) -> None:
    """Write the model of a checkpoint: rlkit export RUN [step=N|best] [to=FOLDER]."""
    from rlkit.cli import export as command

    raise typer.Exit(command.main(context.args))


@app.command(context_settings=WORDS)
def reward(context: typer.Context) -> None:
    """Ask rewards by hand: rlkit reward try recipe=NAME [key=value ...], or rlkit reward retry FILE."""
    from rlkit.cli import reward as command

    raise typer.Exit(command.main(context.args))


@app.command()
def version() -> None:
    """Show the versions of rlkit and of what it stands on."""
    print(versions.table())


if __name__ == "__main__":
    app()
