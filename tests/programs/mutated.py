"""Mutated recipes or data files, each in a fork of this process: `mutated.py KIND FIRST COUNT MODEL`, one JSON line for each case.

KIND   recipes (a dry run), rows (read as at the start of a run and through two steps, without a model)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.assembly.datasets import build_datasets
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.data.renderer import Renderer
from tests.mutations import Case, list_keys, mutate_data, mutate_recipe

SECONDS = 60  # of one case


def read_rows(words: list[str], renderer: Renderer) -> int:
    """What a run does with its rows before and in its steps."""

    def act() -> int:
        recipe = read_recipe(compose_config(words, None))
        stream, _, _ = build_datasets(recipe, renderer, "prompts" if recipe.rewards else recipe.algorithm.reads)
        return int(not stream.take(8))

    return run.handle_errors(act, [])


def in_fork(case: Case, action: Callable[[], int]) -> dict[str, Any]:
    """What became of an action in a folder with the case's files: exit code, messages, files that are new."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as err:
        case.write(Path(folder))
        before = set(Path(folder).rglob("*"))
        pid = os.fork()
        if pid == 0:
            signal.alarm(SECONDS)
            os.chdir(folder)
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(err.fileno(), 2)
            run.main = lambda arguments: action()  # type: ignore[assignment]
            run.run_process([])
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        written = sorted(str(path.relative_to(folder)) for path in set(Path(folder).rglob("*")) - before)
        err.seek(0)
        return {"code": code, "err": err.read().decode(errors="replace"), "written": written[:9]}


def main(kind: str, first: int, count: int, model: str) -> None:
    keys, renderer = list_keys(), Renderer(model)
    door = run.main
    for seed in range(first, first + count):
        if kind == "recipes":
            case = mutate_recipe(seed, keys)
            result = in_fork(case, lambda words=[*case.words, "dry_run=true"]: door(words))  # type: ignore[misc]
        else:
            case = mutate_data(seed)
            result = in_fork(case, lambda words=case.words: read_rows(words, renderer))  # type: ignore[misc]
        print(json.dumps({"seed": seed, "words": case.words, **result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
