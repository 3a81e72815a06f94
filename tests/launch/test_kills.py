"""Kills on a cluster of three hosts, one of them spare: the run goes on, and ends with the metrics of an undisturbed one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import Halt, Host, Hosts, hosts, launcher, left_behind, metrics, restarts

DOWNTIME = 60.0  # seconds, on a machine of two cores


def kill_rank(host: Host, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_raylet(host: Host, pid: int) -> None:
    host.kill_raylet()


def kill_node(host: Host, pid: int) -> None:
    host.kill()


Kill = Callable[[Host, int], None]
PHASES = [("rollout", 2), ("reward", 3), ("update", 2), ("sync", 3), ("checkpoint", 1)]
KILLS: list[tuple[Kill, str, int, int]] = [  # how, the phase, how often it had begun in that attempt, the rank
    *((kill_rank, phase, count, 1) for phase, count in PHASES),
    *((kill_raylet, phase, count, 1) for phase, count in PHASES),
    *((kill_rank, phase, count, 0) for phase, count in PHASES),
    *((kill_node, phase, count, 1) for phase, count in PHASES),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2, 3, 4) as made:
        yield made


def struck(cluster: Hosts, words: list[str], kills: list[tuple[Kill, str, int, int]], folder: Path) -> None:
    """Launches a run and strikes it again and again, each time in the attempt that followed the last; lost hosts come back meanwhile."""
    halt = Halt(folder.with_name("halt")).at(*kills[0][1:])
    launch = launcher("ray", f"address={cluster.address}", *words, folder=folder, env=halt.environment(cluster.env))
    for number, (kill, *_) in enumerate(kills):
        pid = halt.reached(launch)
        if number + 1 < len(kills):
            halt.at(*kills[number + 1][1:])
        host = cluster.of(pid)
        kill(host, pid)
        halt.release()
        if kill is not kill_rank:
            cluster.revive(host)
    ended = launch.ended()
    print(ended.err)
    assert ended.code == 0, ended.err
    downtimes = [row["downtime_seconds"] for row in restarts(folder)]
    print(f"downtimes: {downtimes}")
    assert len(downtimes) >= len(kills) and max(downtimes) < DOWNTIME
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_in_a_row_lose_nothing(cluster: Hosts, on_two: list[str], tmp_path: Path) -> None:
    more = ["steps=40", "eval.every=20", "checkpoint.every=1", "max_restarts=40"]
    whole = launcher("local", *on_two, "workers_per_node=2", "nodes=1", *more, folder=tmp_path / "whole").ended()
    assert whole.code == 0, whole.err
    struck(cluster, [*on_two, *more], KILLS, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    spare = [row["on"] for row in restarts(tmp_path / "run") if row["cause"].startswith("node 127.0.0.3 is lost")]
    assert "2 ranks on 127.0.0.2, 127.0.0.4" in spare
