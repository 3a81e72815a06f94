"""What fits one GPU, checked, as a table: python -m tests.gpu [part1|part2|part3|NAME ...] [--out FOLDER] [--cpu] [--list].

Each check runs in a process of its own for as long as it may take: a crash or a hang is one failed row. Later calls with the same --out add
rows; a check whose row has passed runs again only where its name is given. Without a GPU, or with --cpu, checks run in a small form on the
CPU. Exit code 1 where a row has failed. rlkit/docs/gpu.md shows what to expect.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tests.bench.grpo_step import ROOT
from tests.gpu.checks import CHECKS, Check, select
from tests.gpu.table import Measured, NotRunError, Row, open_table

NOT_RUN = 3  # exit code of a child whose check cannot run here
LINES = 12  # of a child that failed, that are shown
PATIENCE = 4  # times its seconds that the small form may take: two cores are slow, and often busy


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="checks or parts; all without any")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="the folder of the table, and of what checks make")
    parser.add_argument("--cpu", action="store_true", help="the small forms")
    parser.add_argument("--list", action="store_true", help="names, budgets and questions")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    small = asked.cpu or not has_gpu()
    if asked.child:
        return run_child(CHECKS[asked.child], small, asked.out)
    try:
        checks = select(asked.names)
        if asked.list:
            print("\n".join(f"{check.number:3} {check.name:10} {check.part}  {check.seconds:3d} s  {check.question}" for check in checks))
            return 0
        asked.out.mkdir(parents=True, exist_ok=True)
        table = open_table(asked.out, " ".join(["python -m tests.gpu", *words]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for check in checks:
        done = table.rows.get(check.name)
        if done and done.outcome == "passed" and check.name not in asked.names:
            continue
        table.rows[check.name] = row = run_check(check, small, asked.out)
        table.write(asked.out)
        print(row.render(), flush=True)
    print(f"{len(table.rows)} rows in {asked.out / 'table.md'}" + (f"; failed: {', '.join(table.failed)}" if table.failed else ""))
    return int(bool(table.failed))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_check(check: Check, small: bool, folder: Path) -> Row:
    """The check in a process of its own, ended with all that it has started when its time is over."""
    start, form, seconds = time.monotonic(), "CPU" if small else "GPU", check.seconds * (PATIENCE if small else 1)
    command = [sys.executable, "-m", "tests.gpu", "--child", check.name, "--out", str(folder), *(["--cpu"] if small else [])]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if small else {})
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        log.seek(0)
        lines = log.read().splitlines()
    took = time.monotonic() - start
    answer = next((json.loads(line) for line in reversed(lines) if line.startswith('{"figures"')), None)
    if code == 0 and answer:
        measured = Measured(**answer)
        return Row(check.number, check.name, measured.figures, measured.bound, "passed" if measured.passed else "failed", form, took)
    print("\n".join(lines[-LINES:]), file=sys.stderr)
    last = lines[-1] if lines else "no output"
    why = f"not ended after {seconds} s" if code is None else last if code in (1, NOT_RUN) else f"ended with {code}: {last}"
    return Row(check.number, check.name, {"why": why[:300]}, "", "not run" if code == NOT_RUN else "failed", form, took)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_child(check: Check, small: bool, folder: Path) -> int:
    """Runs a check here; its last line is what it measured, or why it failed."""
    try:
        measured = check.run(small, folder)
    except NotRunError as error:
        print(error)
        return NOT_RUN
    except Exception as error:  # noqa: BLE001 - whatever it is becomes a row
        traceback.print_exc(file=sys.stdout)
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    print(json.dumps(asdict(measured)))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    if "--child" in sys.argv:
        os._exit(code)  # engines leave threads behind
    sys.exit(code)
