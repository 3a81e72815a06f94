"""Evaluates a model: `rlkit eval RUN|MODEL [recipe=NAME] [data.test=FILE] [step=N|best] [n=ROWS] [key=value ...]`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit.cli.audit import append_command
from rlkit.cli.model_source import ModelSource, compose_source, find_source
from rlkit.cli.output import print_document, print_text
from rlkit.cli.words import split_model
from rlkit.config.compose import quote
from rlkit.config.recipe import read_recipe
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.audit import seal_folder
from rlkit.report.console import format_number
from rlkit.report.signing import load_signer
from rlkit.run import handle_errors
from rlkit.runtime.library_settings import configure_libraries

if TYPE_CHECKING:
    from rlkit.assembly.evaluate import EvaluationResult, SetResult

USAGE = "rlkit eval RUN|MODEL [recipe=NAME] [data.test=FILE] [step=N|best] [n=ROWS] [key=value ...]"


def run_eval(arguments: list[str], as_json: bool) -> int:
    """Prints the result. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return handle_errors(lambda: print_evaluation(arguments, as_json), arguments)


def print_evaluation(arguments: list[str], as_json: bool) -> int:
    """As run_eval. Raises UserError."""
    name, words = split_model(arguments, USAGE)
    if as_json:
        with stdout_as_stderr():
            result = evaluate_source(name, words, note=lambda text: print(text, file=sys.stderr, flush=True))
        print_document(asdict(result))
    else:
        print_text(describe_result(evaluate_source(name, words, note=print_text)))
    return EXIT_DONE


def evaluate_source(name: str, words: Sequence[str], *, note: Callable[[str], None]) -> EvaluationResult:
    """Evaluates a run's model or another one. words: key=value, as those of the command. Raises UserError and Stopped."""
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("step", "n")}
    source = find_source(name, own.get("step"))
    keys = [word for word in words if word.partition("=")[0] not in own]
    recipes = [word for word in keys if word.startswith("recipe=")]
    if source.run is None and not recipes:
        raise UserError(f"{name} is a model; name the task too, recipe=NAME: grpo_math, or grpo with data.test=FILE")
    if "n" in own:
        keys.append(f"eval.problems={own['n']}")
    tests = [word for word in keys if word.startswith("data.test=")]
    if recipes and tests and not any(word.startswith("data.train") for word in keys):
        keys.insert(0, tests[-1].replace("data.test=", "data.train=", 1))  # which recipes demand, and nobody reads here
    folder = choose_eval_folder(source, keys)
    composed = compose_source(source, [*keys, f"output_dir={quote(folder)}"])
    if "n" in own and (sets := composed.config["eval"].get("sets")):
        few = [f"eval.sets.{name}.problems={own['n']}" for name in sets]
        composed = compose_source(source, [*keys, *few, f"output_dir={quote(folder)}"])
    recipe = read_recipe(composed.config)
    from rlkit.assembly.evaluate import check_evaluation, evaluate_model

    check_evaluation(recipe, folder)
    audited = source.run if source.run and folder.is_relative_to(source.run) else None
    sign = load_signer(recipe.report.audit_key, audited) if audited else None
    source.write()
    configure_libraries(offline=recipe.offline)
    result = evaluate_model(recipe, composed.text, folder, model=source.path, step=source.step, note=note)
    if audited:
        facts = {"step": source.step, "accuracy": result.accuracy, "reward": result.reward, "rows": result.rows}
        append_command(audited, "evaluated", facts, seal_folder(audited, folder), sign)
    return result


def choose_eval_folder(source: ModelSource, words: Sequence[str]) -> Path:
    """output_dir of the words, or a new folder: in that of the run, or in runs/eval."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    step = "" if source.step is None else f"step-{source.step:06d}_"
    default = source.run / "eval" / f"{step}{now}" if source.run else Path("runs", "eval", now)
    return Path(chosen[-1].strip("'\"") if chosen else default).expanduser().absolute()


def describe_result(result: EvaluationResult) -> str:
    """The result in a few lines for a person."""
    step = "" if result.step is None else f", after step {result.step}"
    test: dict[str, SetResult] = {"": result} if "eval/accuracy" in result.metrics else {}
    lines: list[str] = []
    for name, found in {**test, **result.sets}.items():
        how = "greedy" if found.greedy else f"{found.samples} samples each" if found.samples > 1 else "one sample each"
        lines.append(f"{result.model}{step}{f', {name}' if name else ''}: {found.rows:,} rows, {how}")
        lines += describe_set(found, result.metrics, f"eval/{name}/" if name else "eval/")
    return "\n".join([*lines, f"folder {result.folder}"])


def describe_set(found: SetResult, metrics: Mapping[str, float], prefix: str) -> Iterator[str]:
    """The lines on one set; prefix: of the names of its metrics."""
    intervals = {f"avg@{found.samples}" if found.samples > 1 else "accuracy": (found.accuracy, found.accuracy_interval)}
    for name in metrics:
        kind = name.removeprefix(prefix)
        if re.fullmatch(r"(pass|maj)@\d+", kind):
            intervals[kind] = metrics[name], (metrics[f"{name}_low"], metrics[f"{name}_high"])
    intervals["reward"] = found.reward, found.reward_interval
    for kind, (value, (low, high)) in intervals.items():
        yield f"  {kind:<9}  {format_number(value)}  95 % interval {format_number(low)} to {format_number(high)}"
    yield f"  truncated  {format_number(found.truncated)}"
    for name in metrics:
        if name.startswith(f"{prefix}second_opinion/"):
            yield f"  second opinion {name.rpartition('/')[2]}: {format_number(metrics[name])} of the completions are right"
    if found.failed:
        yield f"  {found.failed:,} completions could not be graded, and are in none of these"


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Inside it whatever this process and its children print goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
