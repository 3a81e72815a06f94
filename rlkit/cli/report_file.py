"""`rlkit report RUN`: the page of one run as one file."""

from __future__ import annotations

from pathlib import Path

from rlkit.cli.output import print_text
from rlkit.cli.words import split_own_keys
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.page.runs import walk_runs
from rlkit.report.page.single_file import REPORT, write_single_file
from rlkit.run import handle_errors


def run_report(words: list[str]) -> int:
    """Writes the file. Returns the exit code, as rlkit.run."""
    return handle_errors(lambda: write_run_report(words), [])


def write_run_report(words: list[str]) -> int:
    """As run_report. Raises UserError for what is no run, and a file that cannot be written."""
    own, names = split_own_keys(words, ("to",))
    if len(names) != 1:
        raise UserError("name one run: rlkit report RUN [to=FILE]")
    folder = Path(names[0]).expanduser()
    if next(walk_runs(folder, 0), None) is None:
        raise UserError(f"{folder} is not the folder of a run: it has no recipe.yaml, status.json or metrics.jsonl")
    to = Path(own["to"]).expanduser() if "to" in own else folder / REPORT
    try:
        write_single_file(folder, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror}); set to= to another file") from error
    print_text(str(to))
    return EXIT_DONE
