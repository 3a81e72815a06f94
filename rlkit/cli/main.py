"""The command `rlkit`: what it is called with, and its help. Each command is a file of this folder, loaded when it is called.

Left out: key=value words and the flags of `run`, which the commands read themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rlkit import run as door
from rlkit.config.compose import list_options

TRAIN, LOOK, MODELS, MACHINE = "Train", "Look at data, recipes and runs", "Models", "This machine"
FLAGS = "\b\n" + "\n\n".join(str(door.__doc__).split("\n\n")[1:])  # \b: the first part as it is, not wrapped anew


class GroupedHelp(TyperGroup):
    """Lists commands under headings, those of a sub-command too."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for name, command in self._walk(ctx):
            rows.setdefault(str(command.rich_help_panel), []).append((name, command.get_short_help_str(formatter.width)))
        width = max((len(name) for part in rows.values() for name, _ in part), default=0)
        for heading in sorted(rows, key=(TRAIN, LOOK, MODELS, MACHINE).index):
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows[heading]])

    def _walk(self, ctx: Any) -> Iterator[tuple[str, Any]]:
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if isinstance(command, GroupedHelp):
                yield from ((f"{name} {inner}", found) for inner, found in command._walk(ctx))
            else:
                yield name, command


class WordCommand(TyperCommand):
    """Shows as its usage what it was registered with: its words are its own affair."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [str(self.options_metavar)]


def complete_recipe(incomplete: str) -> list[str]:
    """The recipes that begin so, with `recipe=` where it is written. Bash takes `=` for the end of a word, and asks for what follows."""
    key = "recipe=" if incomplete.startswith("recipe=") else ""
    begin = incomplete.removeprefix(key).removeprefix("=")
    return [key + name for name in list_options("recipe", None) if name.startswith(begin)]


SETTINGS: dict[str, Any] = {"cls": GroupedHelp, "no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(**SETTINGS, pretty_exceptions_enable=False)
data_app, reward_app, env_app = typer.Typer(**SETTINGS), typer.Typer(**SETTINGS), typer.Typer(**SETTINGS)
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(env_app, name="env")

RecipeWords = Annotated[list[str] | None, typer.Argument(hidden=True, autocompletion=complete_recipe)]
Words = Annotated[list[str] | None, typer.Argument(hidden=True)]
Word = Annotated[str, typer.Argument(hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]
Command = Callable[..., None]


def register(group: str, name: str, usage: str, example: str, more: str = "", to: typer.Typer = app) -> Callable[[Command], Command]:
    """Adds a function as a command, whose words are passed on as they are. The help: its docstring, `more`, the example."""

    def add(function: Command) -> Command:
        text = "\n\n".join(filter(None, (inspect.cleandoc(function.__doc__ or ""), more, f"\b\nExample:\n  {example}")))
        settings = {"ignore_unknown_options": True}
        to.command(name, cls=WordCommand, help=text, options_metavar=usage, rich_help_panel=group, context_settings=settings)(function)
        return function

    return add


@app.callback()
def describe_app() -> None:
    """Aligns language models by reinforcement learning. `rlkit COMMAND --help` describes a command."""


@data_app.callback()
def describe_data_app() -> None:
    """Look at the data of a recipe."""


@reward_app.callback()
def describe_reward_app() -> None:
    """Call the rewards of a recipe without training."""


@env_app.callback()
def describe_env_app() -> None:
    """Play an environment or call tools."""


@register(TRAIN, "run", "NAME|FILE [key=value ...] [FLAGS]", "rlkit run grpo_math steps=10 seed=1", more=FLAGS)
def run_training(words: RecipeWords = None) -> None:
    """Train by a recipe; check or plan it.

    The same as `python -m rlkit.run`. NAME is one of `rlkit recipes`; FILE is the recipe.yaml of a run, again.
    """
    door.run_process(words or [])


@register(LOOK, "show", "NAME [n=3] [split=train|test] [key=value ...] [--json]", "rlkit data show grpo_math n=1", to=data_app)
def show_data(words: RecipeWords = None, as_json: Json = False) -> None:
    """Show rows of a recipe's data as a run would read them.

    Loads the tokenizer, no model. Shows the columns that were found, the prompts as the model gets them, with special tokens and their
    number of tokens, the answers, and which rows are left out and why.
    """
    from rlkit.cli import data_show

    raise typer.Exit(data_show.run_data_show(words or [], as_json))


@register(LOOK, "try", "NAME [n=20] [samples=FILE] [key=value ...]", "rlkit reward try grpo_math n=5", to=reward_app)
def try_rewards(words: RecipeWords = None) -> None:
    """Print the scores of a recipe's rewards for rows of its data.

    Loads no model. Each row is tried with the completions that it brings along: its answer in a box (each one of a list of right answers),
    the text that the answer was extracted from, and an empty text. With samples=FILE, the samples.jsonl of a run, the completions are those
    of the run.
    """
    from rlkit.cli import reward_try

    raise typer.Exit(reward_try.run_try(words or []))


@register(LOOK, "retry", "FILE", "rlkit reward retry runs/mine/failed_reward.json", to=reward_app)
def retry_reward(file: Annotated[Path, typer.Argument(hidden=True)]) -> None:
    """Call a reward again with the sample that stopped a run.

    FILE is what the run wrote. The reward runs in this process, with its prints.
    """
    from rlkit.cli import reward_retry

    raise typer.Exit(reward_retry.run_retry(file))


@register(LOOK, "try", "PATH [seed=0] [row=JSON] [timeout=S] [args.NAME=VALUE ...]", "rlkit env try wordle seed=1", to=env_app)
def try_environment(words: Words = None) -> None:
    """Play an environment in this terminal, without a model.

    PATH is as in environment.path: wordle, my_env.py:Maze, my_tools.py:search,my_tools.py:add. Each line is a turn of the policy, also from
    a pipe: a text, or a call of a tool (guess crane; add a=1 b=2; add {"a": 1}). Ctrl-D or /exit ends the episode. It runs in workers as in
    training. row= is the data row that it opens with.
    """
    from rlkit.cli import env_try

    raise typer.Exit(env_try.run_env_try(words or []))


@register(LOOK, "recipes", "[WORD] [--config-dir DIR] [--json]", "rlkit recipes lora")
def show_recipes(
    word: Word = "",
    config_dir: Annotated[Path | None, typer.Option(help="look there too, for DIR/recipe/*.yaml")] = None,
    as_json: Json = False,
) -> None:
    """Print the recipes: what they do, algorithm, data, model.

    All of them, or those that have WORD in their name or in one of these.
    """
    from rlkit.cli import recipes

    raise typer.Exit(recipes.run_recipes(word, config_dir, as_json))


@register(LOOK, "keys", "[WORD] [--json]", "rlkit keys warmup")
def print_keys(word: Word = "", as_json: Json = False) -> None:
    """Print the keys of recipes: value, unit, default, meaning.

    All of them, or those that have WORD in their name or in what they do.
    """
    from rlkit.cli import keys

    raise typer.Exit(keys.run_keys(word, as_json))


@register(LOOK, "compare", "RUN RUN ... [--json]", "rlkit compare runs/grpo_math/*")
def compare_runs(words: Words = None, as_json: Json = False) -> None:
    """Compare runs: recipes, held-out accuracy, reward, speed.

    RUN is the folder of a run, also of one that is not finished, or of a --multirun. Of the recipes only the keys that differ are shown;
    of the held-out accuracy the first, the best and the last value, with their 95 % intervals.
    """
    from rlkit.cli import compare

    raise typer.Exit(compare.run_compare(words or [], as_json))


@register(LOOK, "replay", "RUN [step=N] [key=value ...] [--json]", "rlkit replay runs/mine step=17 algorithm.clip_high=0.3")
def replay_step_of_run(words: Words = None, as_json: Json = False) -> None:
    """Compute a step of a run again, and compare.

    Needs the checkpoint before the step: report.dump_steps=[17] keeps it. Without step=, lists the steps that can be replayed. Samples,
    rewards, advantages, log-probs and metrics are compared with what the run recorded; with key=value, it shows what another setting would
    have changed.
    """
    from rlkit.cli import replay

    door.exit_process(replay.run_replay(words or [], as_json))


@register(LOOK, "watch", "[RUNS ...] [port=8790] [host=ADDRESS]", "rlkit watch runs")
def watch_runs(words: Words = None) -> None:
    """Show runs live on a page of this machine.

    RUNS are folders of runs, or folders with runs in them; without one it is runs/. The page is served on 127.0.0.1 and opened by the link
    that is printed. It shows curves, time and memory, health notes, samples token by token, and two runs over each other. With host=ADDRESS
    others who have the link reach it too.
    """
    from rlkit.cli import watch

    raise typer.Exit(watch.run_watch(words or []))


@register(LOOK, "report", "RUN [to=FILE]", "rlkit report runs/mine")
def write_report(words: Words = None) -> None:
    """Write the page of a run as one HTML file.

    It holds the curves, the health notes, the recipe and some of the samples, and opens without a server or a network. A run writes it as
    report.html when it ends, is stopped or fails; this command writes it anew.
    """
    from rlkit.cli import report_file

    raise typer.Exit(report_file.run_report(words or []))


@register(LOOK, "audit", "RUN [--head HASH] [--key FILE] [--json]", "rlkit audit runs/mine")
def audit_run(
    run: Word,
    head: Annotated[str | None, typer.Option(help="the head that was printed at the end of the run, kept elsewhere")] = None,
    key: Annotated[str | None, typer.Option(help="the public key (PEM) of report.audit_key, which must have signed each line")] = None,
    as_json: Json = False,
) -> None:
    """Check the files of a run against its audit.

    RUN is the folder of a run. Says what happened to it, and which files changed, are missing or were added since they were written; the
    exit code is 2 where one did. Without --head it does not notice that the last lines of audit.jsonl were cut off.
    """
    from rlkit.cli import audit

    raise typer.Exit(audit.run_audit(run, head, key, as_json))


EVAL = "RUN|MODEL [recipe=NAME] [data.test=FILE] [step=N|best] [n=ROWS] [key=value ...]"


@register(MODELS, "eval", EVAL, "rlkit eval runs/mine data.test=hard.jsonl n=200")
def evaluate_on_rows(words: Words = None, as_json: Json = False) -> None:
    """Evaluate a model on held-out rows: accuracy and reward.

    RUN is the folder of a run: its newest checkpoint, or that of `step`, with its own rewards, prompts and sampling, on its data.test and
    eval.sets or on another file. MODEL is any folder or name of the hub, and the recipe is named: recipe=NAME. Accuracy and reward come
    with their 95 % intervals; samples.jsonl and result.json are written into a new folder, which output_dir= names.
    """
    from rlkit.cli import evaluate

    door.exit_process(evaluate.run_eval(words or [], as_json))


@register(MODELS, "export", "RUN [as=merged|adapter] [step=N|best] [to=FOLDER]", "rlkit export runs/mine step=best to=my_model")
def export_checkpoint(words: Words = None) -> None:
    """Write the model of a checkpoint, as at the end of a run.

    RUN is the folder of a run, finished or not. Without `step` the newest checkpoint is used; step=best is the one of the best evaluation,
    which checkpoint.best=true keeps. as=merged merges LoRA adapters into the model, as=adapter writes them alone; without it the form is
    that of the run.
    """
    from rlkit.cli import export

    raise typer.Exit(export.run_export(words or []))


CHAT = "RUN|MODEL [temperature=T] [max_tokens=N] [system=TEXT] [key=value ...]"


@register(MODELS, "chat", CHAT, "rlkit chat runs/mine temperature=0.7")
def chat_with_model(words: Words = None) -> None:
    """Talk with a model in this terminal.

    RUN is the folder of a run (step=N|best: an earlier checkpoint), MODEL any folder or name of the hub. Answers are greedy unless
    temperature= is given, beside which top_p=, top_k=, min_p= and seed= are known. Ctrl-C stops an answer, /clear begins anew, Ctrl-D or
    /exit leaves. From a pipe, each line is a message.
    """
    from rlkit.cli import chat

    raise typer.Exit(chat.run_chat(words or []))


@register(MODELS, "serve", "RUN|MODEL [port=8000] [host=ADDRESS] [name=value ...]", "rlkit serve runs/mine port=8001")
def serve_model(words: Words = None) -> None:
    """Serve a model by vLLM's OpenAI-compatible server.

    RUN is the folder of a run (step=N|best: an earlier checkpoint), MODEL any folder or name of the hub. The server listens on 127.0.0.1.
    With host=ADDRESS others reach it, and it needs a key: the environment variable VLLM_API_KEY. Any other name=value is a setting of
    `vllm serve`: max_model_len=4096, tensor_parallel_size=2.
    """
    from rlkit.cli import serve

    raise typer.Exit(serve.run_serve(words or []))


@register(MACHINE, "doctor", "[--json]", "rlkit doctor")
def check_machine(as_json: Json = False) -> None:
    """Check what this machine has of what rlkit needs.

    Versions, driver and GPUs, compiler, sandbox for code, memory, disk, whether vLLM loads. Each line is ok, a warning or a problem, with
    what to do; the exit code is 1 where there is a problem.
    """
    from rlkit.cli import doctor

    raise typer.Exit(doctor.run_doctor(as_json))


@register(MACHINE, "version", "[--json]", "rlkit version")
def show_versions(as_json: Json = False) -> None:
    """Print the versions of rlkit and of the libraries that it uses."""
    from rlkit.cli import version

    version.print_versions(as_json)


if __name__ == "__main__":
    app()
