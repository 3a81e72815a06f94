"""--multirun: every combination of comma-separated values, one after the other, each in a process of its own; at the end a table.

Left out: several at a time.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.cli.output import print_text
from rlkit.config.compose import SweepJob, compose_config, expand_sweep, quote
from rlkit.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError
from rlkit.report.console import format_number
from rlkit.report.run_result import FIELDS, RunResult, read_result
from rlkit.report.table import format_table
from rlkit.runtime.redaction import redact_arguments, redact_message
from rlkit.runtime.signals import SIGNALS

SEED = "seed"
STATES = {EXIT_DONE: "done", EXIT_STOPPED: "stopped", EXIT_USER: "refused"}  # by exit code; any other has failed


@dataclass(frozen=True)
class FinishedJob:
    """A job of a sweep that has ended. values: of the keys that vary; result: None where it wrote no run."""

    values: Mapping[str, str]
    code: int
    result: RunResult | None


def run_sweep(overrides: list[str], folder: Path | None, module: str = "rlkit.run") -> int:
    """Runs every combination by `python -m MODULE`, rlkit.run or a launcher; returns the exit code. folder: of the user's own recipes.

    Raises UserError before the first starts, for a mistake in any of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--multirun starts processes of its own, and this one is a rank of torchrun or srun; use bash launch/local.sh or "
            "python -m launch.ray, or start each job with a command of its own"
        )
    jobs = prepare_jobs(overrides, folder)
    extra = ["--config-dir", str(folder)] if folder else []
    finished: list[FinishedJob] = []
    for number, (job, place) in enumerate(jobs, start=1):
        words = [*job.words, f"output_dir={quote(place)}"]
        print(f"job {number}/{len(jobs)}: {' '.join(redact_arguments(words))}", flush=True)
        code = run_and_forward_signals([sys.executable, "-m", module, *extra, *words])
        finished.append(FinishedJob(job.values, code, read_job_result(place)))
        if code == EXIT_STOPPED:
            break
    print_text(format_sweep(finished))
    return next((job.code for job in reversed(finished) if job.code == EXIT_STOPPED), find_first_fault(finished))


def prepare_jobs(overrides: list[str], folder: Path | None) -> list[tuple[SweepJob, Path]]:
    """Each combination, and the folder of its run. Raises UserError for a mistake in any of them."""
    from rlkit.config.recipe import read_recipe

    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    jobs: list[tuple[SweepJob, Path]] = []
    for job in expand_sweep(overrides, folder):
        config = compose_config(job.words, folder)
        read_recipe(config)
        base = Path(config["output_dir"] or f"runs/{config['recipe']}/{started}")
        named = ",".join(f"{key}={value}" for key, value in job.values.items()) or "0"
        name = redact_message(named)
        jobs.append((job, base / (name if name == named else f"{len(jobs)},{name}").replace("/", "_")))
    return jobs


def find_first_fault(finished: Sequence[FinishedJob]) -> int:
    return next((job.code for job in finished if job.code != EXIT_DONE), EXIT_DONE)


def read_job_result(folder: Path) -> RunResult | None:
    """What the run in a folder came to; None where there is none."""
    try:
        return read_result(folder.expanduser())
    except UserError:
        return None


def format_sweep(finished: Sequence[FinishedJob]) -> str:
    """A line for each job; where seeds vary, mean and standard deviation (n-1) over the seeds of jobs that are equal otherwise."""
    keys = list(dict.fromkeys(key for job in finished for key in job.values))
    measure = next((job.result.measure for job in finished if job.result and job.result.held_out), "accuracy")
    lines = [[*keys, "state", "steps", f"held-out {measure}", "reward", "seconds a step"]]
    for job in finished:
        shown = ["-"] * 4 if job.result is None else [FIELDS[name](job.result) for name in ("steps", "last", "reward", "seconds a step")]
        lines.append([*(redact_message(job.values.get(key, "-")) for key in keys), STATES.get(job.code, "failed"), *shown])
    table = format_table(lines)
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    others = [key for key in keys if key != SEED]
    for job in finished:
        if SEED in job.values and job.result is not None and job.code == EXIT_DONE:
            groups.setdefault(tuple(redact_message(job.values[key]) for key in others), []).append(job.result)
    if not any(len(group) > 1 for group in groups.values()):
        return table
    spread = [[*others, "seeds", f"held-out {measure}", "reward"]]
    for values, results in groups.items():
        last = [result.last.value for result in results if result.last]
        rewards = [result.reward for result in results if result.reward is not None]
        spread.append([*values, str(len(results)), format_spread(last), format_spread(rewards)])
    return f"{table}\n\nmean and standard deviation over seeds\n{format_table(spread)}"


def format_spread(values: Sequence[float]) -> str:
    """`0.450 ± 0.012`; without a standard deviation for one value."""
    if not values:
        return "-"
    return format_number(statistics.mean(values)) + (f" ± {format_number(statistics.stdev(values))}" if len(values) > 1 else "")


def run_and_forward_signals(command: list[str]) -> int:
    """The exit code of a command. Signals that ask a run to stop are forwarded to it: it saves, and this process waits.

    The command has a session of its own. Otherwise a signal of the terminal would reach it twice, and the second ends a run unsaved.
    """
    process = subprocess.Popen(command, start_new_session=True)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in SIGNALS}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
