"""The door: `python -m rlkit.run NAME [key=value ...]`, which is recipe=NAME, or RUN/recipe.yaml: the recipe of a run, again.

    --cfg job         check and print the resolved recipe, and stop
    --multirun, -m    one process for each combination: seed=0,1,2
    --config-dir DIR  look there too: DIR/recipe/mine.yaml is recipe=mine

Exit codes: 0 done; 2 a mistake in the recipe, the data or a reward; 75 stopped and ready to resume; 1 anything else.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from rlkit.config.compose import compose_recipe, list_options
from rlkit.config.renamed import answer_foreign_key
from rlkit.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, RunFailed, Stopped, UserError
from rlkit.runtime.library_settings import configure_libraries
from rlkit.runtime.model_path import explain_no_home
from rlkit.runtime.redaction import redact_message
from rlkit.runtime.signals import exit_on_signal

MESSAGE_LINES = 10
LINE_CHARACTERS = 1000
NO_HOME = "Could not determine home directory."  # of Path.expanduser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command of the arguments; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    configure_libraries(offline=False)
    return handle_errors(lambda: dispatch(arguments), arguments)


def print_error(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def handle_errors(action: Callable[[], int], arguments: list[str], show: Callable[[str], None] = print_error) -> int:
    """The exit code of an action. An error that rlkit raises on purpose becomes its exit code, and `show` gets the message."""
    debug = "debug=true" in [a.lower() for a in arguments]
    try:
        return action()
    except UserError as error:
        return report_error(error, EXIT_USER, debug, show)
    except RunFailed as error:
        return report_error(error, EXIT_FAILED, debug, show)
    except ModuleNotFoundError as error:
        advice = explain_missing_module(error)
        if advice is None:
            raise
        return report_error(UserError(advice), EXIT_USER, debug, show)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return report_error(UserError(f"a path of the recipe is longer than a file system takes: {error.filename}"), EXIT_USER, debug, show)
    except RuntimeError as error:
        if str(error) != NO_HOME:
            raise
        path = next((word for word in arguments if word.startswith("~")), "~")
        return report_error(UserError(f"{path}: {explain_no_home(path)}"), EXIT_USER, debug, show)
    except Stopped as error:
        show(str(error))
        return EXIT_STOPPED


def explain_missing_module(error: ModuleNotFoundError) -> str | None:
    """What to do where this Python lacks rlkit's own packages; None where it has them."""
    if Path(sys.prefix, "rlkit-setup", "unfinished").exists():
        return f"the install into {sys.prefix} did not end: run bash launch/local.sh again"
    if find_spec("hydra") is None:
        return (
            f"{sys.executable} lacks {error.name}, which rlkit needs: source .venv/bin/activate after bash launch/local.sh, "
            'or pip install -e ".[cpu]" (".[gpu]" on a GPU)'
        )
    if "Could not import module" in str(error) and find_spec("torchvision"):  # of transformers
        return (
            "transformers does not load beside this torchvision, perhaps a build for CUDA without a GPU: "
            f"pip uninstall -y torchvision torchaudio torchcodec ({error})"
        )
    return None


def report_error(error: Exception, code: int, debug: bool, show: Callable[[str], None]) -> int:
    """Shows the error's message and returns `code`; with debug=true raises the error, for its traceback."""
    if debug:
        raise error
    message = redact_message(str(error))
    show(f"rlkit: {truncate_message(message) if code == EXIT_USER else message}")
    return code


def truncate_message(message: str) -> str:
    """A message with at most MESSAGE_LINES lines: a value that somebody wrote, shown in it, can have any length."""
    lines = [line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]} ..." for line in message.splitlines()]
    if len(lines) > MESSAGE_LINES:
        lines[MESSAGE_LINES - 1 :] = [f"... ({len(lines) - MESSAGE_LINES + 1} more lines; debug=true shows all)"]
    return "\n".join(lines)


def ignore_folder(folder: Path) -> None:
    """Nobody asked for the folder of the run."""


def dispatch(arguments: list[str], started: Callable[[Path], None] = ignore_folder) -> int:
    """Does what the arguments ask for; returns the exit code. started: is called with the folder of the run before its first step."""
    flags, overrides, folder = parse_arguments(arguments)
    if "--help" in flags:
        print(__doc__, f"\nrecipes: {', '.join(list_options('recipe', folder))}", sep="")
        return EXIT_DONE
    if "--multirun" in flags:
        from rlkit.cli.multirun import run_sweep

        return run_sweep(overrides, folder)
    composed = compose_recipe(overrides, folder)
    from rlkit.config.recipe import read_recipe

    recipe = read_recipe(composed.config)
    from rlkit.assembly import experts, machine, plan, raw_settings

    experts.check_experts(recipe)
    raw_settings.check_raw_settings(recipe)
    if "--cfg" in flags:
        print(composed.text, end="")
        return EXIT_DONE
    machine.check_gpu(recipe)
    if recipe.dry_run:
        from rlkit.assembly.disk import describe_disk
        from rlkit.assembly.dry_run import describe_dry_run
        from rlkit.assembly.teacher import check_files

        check_files(recipe)
        for label, value in [*plan.describe_plan(recipe), *describe_disk(recipe), *describe_dry_run(recipe)]:
            print(f"{label + ':':<14} {redact_message(value)}")
        plan.check_memory(recipe)
        return EXIT_DONE
    configure_libraries(offline=recipe.offline)
    from rlkit.assembly import build
    from rlkit.trainers import loop

    with build.build_run(recipe, composed.text) as run:
        started(run.folder)
        loop.run_loop(run)
    return EXIT_DONE


def parse_arguments(arguments: list[str]) -> tuple[set[str], list[str], Path | None]:
    """Flags, overrides, and the extra folder of recipes."""
    flags: set[str] = set()
    overrides: list[str] = []
    folder: Path | None = None
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            flags.add("--multirun")
        elif argument in ("-h", "--help"):
            flags.add("--help")
        elif argument in ("-c", "--cfg"):
            what = next(rest, None)
            if what != "job":
                raise UserError("--cfg takes one word: job")
            flags.add("--cfg")
        elif argument.startswith("--config-dir"):
            named = argument.partition("=")[2] or next(rest, "")
            folder = Path(named).absolute()
            if not named or not folder.is_dir():
                raise UserError(f"--config-dir {folder} is not a folder")
        elif argument.startswith("-"):
            answer = answer_foreign_key(argument.lstrip("-").partition("=")[0].replace("-", "_"))
            hint = f"{answer}; write key=value" if answer else "valid: --cfg job, --multirun, --config-dir DIR, --help"
            raise UserError(f"unknown flag {argument}; {hint}")
        else:
            overrides.append(argument)
    return flags, overrides, folder


def exit_process(code: int) -> None:
    """Ends the process at once: at a normal exit vLLM, DeepSpeed and torch block each other while they close their process groups."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_process(arguments: list[str] | None = None) -> None:
    """Runs `main` as the whole process; does not return."""
    end_process_with(lambda: main(arguments))


def end_process_with(action: Callable[[], int]) -> None:
    """Runs an action, which returns an exit code, as the whole process; does not return."""
    for missing in ("stdout", "stderr"):  # the parent may have closed them; a run needs neither
        if getattr(sys, missing) is None:
            setattr(sys, missing, open(os.devnull, "w"))  # noqa: SIM115  for the life of the process
    exit_on_signal()  # until the run handles signals itself: a stop while libraries are loaded is not a crash
    try:
        code = action()
    except BaseException:  # noqa: BLE001  after any error the process ends here, not in the exit handlers of a library
        print(redact_message(traceback.format_exc()), end="", file=sys.stderr)
        code = EXIT_FAILED
    exit_process(code)


if __name__ == "__main__":
    run_process()
