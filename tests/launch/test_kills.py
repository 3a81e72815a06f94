"""Kills on a cluster of three hosts, one of them spare: the run continues and ends with the metrics of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
PHASES = [("rollout", 2), ("reward", 3), ("update", 2), ("sync", 3), ("checkpoint", 1)]  # how often it had begun in that attempt
LENGTHS = {"rollout": 0.04, "reward": 0.01, "update": 0.03, "sync": 0.002, "checkpoint": 0.03}  # seconds, about, of this run
KILLS: list[tuple[Kill, int]] = [(kill_rank, 1), (kill_raylet, 1), (kill_rank, 0), (kill_node, 1)]  # how, the rank


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2, 3, 4) as made:
        yield made


@dataclass
class Strike:
    kill: Kill
    phase: str
    count: int
    rank: int
    seconds: float  # into the phase

    def prepared(self, halt: Halt) -> Halt:
        return halt.at(self.phase, self.count, self.rank, self.seconds)


def strikes(seed: int) -> list[Strike]:
    """Each way in each phase, at a random moment of it."""
    draw = random.Random(seed)
    return [Strike(kill, phase, count, rank, draw.uniform(0.0, LENGTHS[phase])) for kill, rank in KILLS for phase, count in PHASES]


def struck(cluster: Hosts, words: list[str], kills: list[Strike], folder: Path) -> None:
    """Launches a run and strikes it again and again, each time in the attempt that followed the last; lost hosts come back meanwhile."""
    halt = kills[0].prepared(Halt(folder.with_name("halt")))
    launch = launcher("ray", f"address={cluster.address}", *words, folder=folder, env=halt.environment(cluster.env))
    for strike, following in zip(kills, [*kills[1:], None], strict=True):
        pid = halt.reached(launch)
        if following:
            following.prepared(halt)
        host = cluster.of(pid)
        strike.kill(host, pid)
        halt.release()
        if strike.kill is not kill_rank:
            cluster.revive(host)
    ended = launch.ended()
    print(ended.err)
    assert ended.code == 0, ended.err
    downtimes = [row["downtime_seconds"] for row in restarts(folder)]
    print(f"downtimes: {downtimes}")
    assert len(downtimes) >= len(kills) and max(downtimes) < DOWNTIME
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_of_each_kind_in_a_phase_of_its_own_loses_nothing(cluster: Hosts, on_two: list[str], tmp_path: Path) -> None:
    """tests/runs/test_repeatable.py kills in the other phases."""
    more = ["steps=16", "eval.every=8", "checkpoint.every=1", "max_restarts=8"]
    whole = launcher("local", *on_two, "workers_per_node=2", "nodes=1", *more, folder=tmp_path / "whole").ended()
    assert whole.code == 0, whole.err
    kills = [Strike(kill_rank, "rollout", 2, 1, 0.0), Strike(kill_raylet, "update", 2, 1, 0.0), Strike(kill_node, "checkpoint", 1, 1, 0.0)]
    struck(cluster, [*on_two, *more], kills, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.nightly(part="kills")
@pytest.mark.timeout(1200)
def test_twenty_kills_in_a_row_lose_nothing(cluster: Hosts, on_two: list[str], tmp_path: Path) -> None:
    more = ["steps=80", "eval.every=40", "checkpoint.every=1", "max_restarts=40"]  # a lost raylet's ranks go on until it is noticed
    whole = launcher("local", *on_two, "workers_per_node=2", "nodes=1", *more, folder=tmp_path / "whole").ended()
    assert whole.code == 0, whole.err
    struck(cluster, [*on_two, *more], strikes(seed=0), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    spare = [row["on"] for row in restarts(tmp_path / "run") if row["cause"].startswith("node 127.0.0.3 is lost")]
    assert "2 ranks on 127.0.0.2, 127.0.0.4" in spare
