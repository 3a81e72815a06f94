"""launch.local: many ranks on this machine, their exit codes, signals, and what is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.launcher import AttemptResult, describe_hang, find_result
from launch.worker_group import WorkerGroup, build_environments, read_process_state
from rlkit.runtime.processes import list_descendants
from tests.conftest import environment, run
from tests.launch.conftest import Halt, Launch, launcher, left_behind, metrics, restarts, until

HERE = ["nodes=1", "workers_per_node=2"]

# -- a group of small programs -----------------------------------------------------------------------------------------------------


def group_of(folder: Path, code: str, ranks: int = 2, lease: float | None = None) -> WorkerGroup:
    """Ranks that run a line of Python each."""
    each = build_environments(os.environ, 0, ranks, ranks, "127.0.0.1", 1)
    return WorkerGroup("here", [sys.executable, "-u", "-c", code], each, folder, lease)


def codes(made: WorkerGroup) -> list[int | None]:
    return [rank["code"] for rank in made.poll()["ranks"]]


def test_ranks_are_numbered_and_their_exit_codes_are_their_own(tmp_path: Path) -> None:
    made = group_of(
        tmp_path, "import os, sys; r = int(os.environ['RANK']); print('out', r); print('err', r, file=sys.stderr); sys.exit([2, 75][r])"
    )
    until(lambda: None not in codes(made), 10)
    time.sleep(0.3)
    made.end()
    polled = made.poll()
    assert [rank["code"] for rank in polled["ranks"]] == [2, 75]
    for rank in (0, 1):
        text = (tmp_path / "ranks" / f"rank-{rank}.log").read_text()
        assert re.match(rf"--- \d{{4}}-.* rank {rank} on here, process \d+\n", text) and f"out {rank}\n" in text and f"err {rank}\n" in text


def test_rank_0_is_heard_and_of_the_others_what_they_complain_of(tmp_path: Path) -> None:
    made = group_of(tmp_path, "import os, sys; r = os.environ['RANK']; print('out', r); print('err', r, file=sys.stderr)")
    lines: list[tuple[int, bool, str]] = []
    until(lambda: lines.extend(made.poll()["lines"]) or len(lines) >= 3, 10)
    made.end()
    assert sorted(lines) == [(0, False, "out 0"), (0, True, "err 0"), (1, True, "err 1")]


def test_heartbeats_tell_the_phase_and_stacks_tell_where(tmp_path: Path) -> None:
    code = (
        "import time\nfrom rlkit.runtime import heartbeat\n"
        "def waits_for_the_end():\n    time.sleep(60)\n"
        "heartbeat.start_heartbeat(); heartbeat.beat('update', 7); waits_for_the_end()"
    )
    made = group_of(tmp_path, code)
    until(lambda: {rank["phase"] for rank in made.poll()["ranks"]} == {"update"}, 10)
    os.kill(made.poll()["ranks"][1]["pid"], signal.SIGSTOP)
    time.sleep(0.1)
    made.dump_stacks()
    made.end()
    going, stopped = ((tmp_path / "ranks" / f"rank-{rank}.stacks").read_text() for rank in (0, 1))
    assert "phase update of step 7" in going and "in waits_for_the_end" in going
    assert "phase update of step 7" in stopped and "process state T (stopped)" in stopped


@pytest.mark.parametrize("lease", [None, 0.5], ids=["ended", "forgotten"])
def test_nothing_outlives_a_group_of(tmp_path: Path, lease: float | None) -> None:
    """No grandchildren in other sessions and no shared memory, after `end` and after the end of the lease."""
    code = (
        "import subprocess, multiprocessing, time\n"
        "subprocess.Popen(['sleep', '61.5'], start_new_session=True)\n"
        "lock = multiprocessing.get_context('spawn').Lock(); print(lock._semlock.name, flush=True); time.sleep(60)"
    )
    made = group_of(tmp_path, code, ranks=1, lease=lease)
    polled: list[tuple[int, bool, str]] = []
    until(lambda: polled.extend(made.poll()["lines"]) or polled, 10)
    shared = Path("/dev/shm", f"sem.{polled[0][2].lstrip('/')}")
    pid = made.poll()["ranks"][0]["pid"]
    tree = [pid, *list_descendants(pid)]
    assert len(tree) == 3 and shared.exists()  # with Python's resource tracker, which is left the time to take the memory away
    if lease is None:
        made.end()
    until(lambda: all(read_process_state(each)[0] in "gZ" for each in tree) and not shared.exists(), 10)


def test_a_killed_launcher_takes_its_ranks_along(tmp_path: Path) -> None:
    code = (
        "import sys, time, os\nfrom pathlib import Path\nfrom launch.worker_group import WorkerGroup, build_environments\n"
        "each = build_environments(os.environ, 0, 2, 2, '127.0.0.1', 1)\n"
        "rank = 'import os, time; os.write(2, b\"up\\\\n\"); time.sleep(60)'\n"
        "made, seen = WorkerGroup('here', [sys.executable, '-c', rank], each, Path(sys.argv[1])), []\n"
        "while len(seen) < 2: seen += made.poll()['lines']\n"
        "print(*[r['pid'] for r in made.poll()['ranks']], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert [read_process_state(pid)[0] in "SR" for pid in pids] == [True, True]
    process.kill()
    process.wait()
    until(lambda: all(read_process_state(pid)[0] in "gZ" for pid in pids), 5)


# -- how an attempt ends -----------------------------------------------------------------------------------------------------------


def state(
    rank: int, code: int | None, ended: float | None = None, quiet: float = 0.0, phase: str = "update", stopped: bool = False
) -> dict[str, object]:
    known = {"rank": rank, "node": "n", "code": code, "ended": ended, "quiet": quiet, "phase": phase, "step": 3, "pid": 1}
    return known | {"stopped": stopped}


@pytest.mark.parametrize(
    ("codes", "asked", "ended"),
    [
        ([None, None], False, None),
        ([0, None], False, None),
        ([0, 0], False, AttemptResult(0)),
        ([75, 75], False, AttemptResult(75)),
        ([None, 2], False, AttemptResult(2)),
        ([1, 2], False, AttemptResult(2)),  # the others fell over the one that found the mistake
        ([75, 1], True, AttemptResult(75)),
        ([-15, -15], True, AttemptResult(75)),  # asked before they listened
        ([-15, 75], False, AttemptResult(1, "rank 0 on n was ended by SIGTERM in phase update of step 3")),
        ([1, 1], True, AttemptResult(1, "rank 1 on n ended with exit code 1 in phase update of step 3")),
        ([1, -9], False, AttemptResult(1, "rank 1 on n was ended by SIGKILL in phase update of step 3")),
    ],
)
def test_how_an_attempt_ends(codes: list[int | None], asked: bool, ended: AttemptResult | None) -> None:
    ranks = [state(n, code, None if code is None else 1.0 + n) for n, code in enumerate(codes)]
    assert find_result(ranks, asked) == ended


def test_the_watchdog_waits_for_the_last_that_moves_and_names_the_first_that_stopped() -> None:
    assert (
        describe_hang([state(0, None, quiet=61.0), state(1, None, quiet=59.0)], 60.0) is None
    )  # rank 0 may wait for rank 1's long rollout
    told = describe_hang([state(0, None, quiet=61.0), state(1, None, quiet=90.0, phase="sync"), state(2, 0, 5.0)], 60.0)
    assert told is not None and "quiet the longest: rank 1 on n, in phase sync of step 3" in told
    told = describe_hang([state(0, None, quiet=62.0), state(1, None, quiet=61.0, stopped=True)], 60.0)
    assert told is not None and "stopped by a signal: rank 1 on n, in phase update of step 3" in told


def test_a_reader_that_goes_away_does_not_end_the_launcher() -> None:
    code = "import sys; from launch.launcher import print_line; [print_line('x' * 100_000, sys.stdout) for _ in range(3)]"
    code += "; print_line('goes on', sys.stderr)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (0, b"goes on\n")


# -- real runs ---------------------------------------------------------------------------------------------------------------------


def test_a_sweep_starts_a_launcher_for_each_job_and_ends_with_a_table(tmp_path: Path) -> None:
    words = ["--multirun", "recipe=sft_math", "workers_per_node=2", "seed=7", "dry_run=true", f"output_dir={tmp_path}"]
    ended = run(*words, module="launch.local")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"^job 1/1: .*launch.workers_per_node=2", ended.out) and " 2 processes taking turns" in ended.out
    assert ended.out.splitlines()[-2:] == [
        "state  steps  held-out accuracy  reward  seconds a step",
        "done   -      -                  -       -",
    ]
    ended = run("--multirun", "recipe=sft_math", "seed=0,1", WORLD_SIZE="2")
    assert ended.code == 2 and "this one is a rank of torchrun or srun" in ended.err


def test_a_mistake_that_the_ranks_find_is_told_once_and_not_tried_again(on_two: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1\n")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    ended = launcher("local", *on_two, *HERE, folder=tmp_path / "run").ended()
    assert ended.code == 2
    assert ended.err.count("holds a run of another recipe") == 1
    assert not (tmp_path / "run" / "restarts.jsonl").exists() and left_behind(tmp_path / "run") == []


def interrupted(launch: Launch) -> float:
    """Ctrl-C in the launcher's terminal, twice; seconds until it has ended with 75."""
    start = time.monotonic()
    for _ in range(2):
        launch.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    ended = launch.ended(20)
    assert ended.code == 75, ended.err
    return time.monotonic() - start


@pytest.mark.slow
def test_hung_then_stopped_then_gone_on_with(on_two: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """A rank that is stopped in an update is found; the restart is asked to stop in a rollout; the next run ends as if nothing had been."""
    folder, halt = tmp_path / "run", Halt(tmp_path / "halt").at("update", 3, 1)
    words = [*on_two, *HERE, "max_restarts=1", "watchdog_minutes=1"]  # loading on a busy machine is no hang
    launch = launcher("local", *words, folder=folder, env=halt.environment(environment(OMP_NUM_THREADS="1")))
    pid = halt.reached(launch)
    halt.at("rollout", 2, 0)
    os.kill(pid, signal.SIGSTOP)
    halt.release()

    halt.reached(launch)
    asked = time.monotonic()
    launch.process.send_signal(signal.SIGTERM)
    launch.process.send_signal(signal.SIGUSR1)  # a scheduler's warning after it changes nothing
    time.sleep(0.5)
    halt.release()
    stopped = launch.ended(60)
    assert stopped.code == 75, stopped.err
    assert time.monotonic() - asked < 30
    assert "stopped after step 3 of 4, saved" in stopped.err
    assert left_behind(folder) == []

    (restart,) = restarts(folder)
    assert "stopped by a signal: rank 1 on 127.0.0.1, in phase update of step 3" in restart["cause"]
    stacks = (folder / "ranks" / "rank-1.stacks").read_text()
    assert "phase update of step 3" in stacks and "T (stopped)" in stacks
    assert "all_reduce" in (folder / "ranks" / "rank-0.stacks").read_text()  # where the other one waited for it

    ended = launcher("local", *words, folder=folder).ended()
    assert ended.code == 0, ended.err
    assert metrics(folder) == metrics(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["Ctrl-C twice", "SIGKILL"])
def test_a_launcher_that_ends_leaves_nothing(way: str, on_two: list[str], tmp_path: Path) -> None:
    folder, halt = tmp_path / "run", Halt(tmp_path / "halt").at("sync", 1, 0)
    launch = launcher("local", *on_two, *HERE, folder=folder, env=halt.environment(environment(OMP_NUM_THREADS="1")))
    halt.reached(launch)  # reward workers are there too
    assert len(launch.ranks()) == 2 and len(left_behind(folder)) > 4
    if way == "SIGKILL":
        launch.process.kill()
        launch.process.wait()
    else:
        assert interrupted(launch) < 10
    until(lambda: left_behind(folder) == [], 10, lambda: str(left_behind(folder)))
