"""Kills on a cluster of three hosts, one of them spare: the run goes on, and ends with the metrics of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import Hosts, halting, hosts, launcher, left_behind, metrics, until

DOWNTIME = 60.0  # seconds, on a machine of two cores


@pytest.fixture(scope="module")
def words(small: list[str]) -> list[str]:
    return [*small, "engine.rollout=hf", "rewarding.workers=1", "nodes=2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2, 3, 4) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Hosts, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = launcher("ray", f"address={cluster.address}", *words, folder=folder, env=cluster.env).ended()
    assert ended.code == 0, ended.err
    assert "2 ranks on 127.0.0.2, 127.0.0.3" in ended.err
    return folder


def restarts(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "restarts.jsonl").read_text().splitlines()]


def kill_rank(cluster: Hosts, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_raylet(cluster: Hosts, pid: int) -> None:
    os.kill(cluster.hosts["127.0.0.3"].raylet(), signal.SIGKILL)


def kill_node(cluster: Hosts, pid: int) -> None:
    cluster.hosts["127.0.0.3"].kill()


def revive(cluster: Hosts, number: int = 3) -> None:
    host = cluster.hosts.pop(f"127.0.0.{number}")
    host.kill()
    cluster.add(number)


MOMENTS = [("rollout", 3), ("reward", 5), ("update", 3), ("sync", 4), ("checkpoint", 1)]
KILLS = [(kill, *moment) for kill in (kill_rank, kill_raylet, kill_node) for moment in MOMENTS]


@pytest.mark.parametrize(
    ("kill", "phase", "count"),
    [pytest.param(*kill, marks=() if kill == (kill_node, "update", 3) else pytest.mark.slow) for kill in KILLS],
)
def test_killed_and_started_again(
    cluster: Hosts, undisturbed: Path, words: list[str], tmp_path: Path, kill: Callable[[Hosts, int], None], phase: str, count: int
) -> None:
    folder, env = tmp_path / "run", halting(cluster.env, phase, count, rank=1, file=tmp_path / "halted")
    launch = launcher("ray", f"address={cluster.address}", *words, folder=folder, env=env)
    pid = launch.halted(tmp_path / "halted")
    kill(cluster, pid)
    ended = launch.ended()
    if kill is not kill_rank:
        revive(cluster)
    assert ended.code == 0, ended.err
    assert metrics(folder) == metrics(undisturbed)
    (restart,) = restarts(folder)
    assert isinstance(restart["downtime_seconds"], float) and restart["downtime_seconds"] < DOWNTIME
    assert restart["on"] == f"2 ranks on 127.0.0.2, 127.0.0.{3 if kill is kill_rank else 4}"
    if kill is kill_rank:
        seen = {"reward": "rollout"}.get(phase, phase)  # verdicts are waited for within the rollout
        assert f"rank 1 on 127.0.0.3 was ended by SIGKILL in phase {seen} of step" in ended.err
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_in_a_row_lose_nothing(cluster: Hosts, undisturbed: Path, words: list[str], tmp_path: Path) -> None:
    """Ranks at random moments, and now and then a raylet."""
    folder, draws = tmp_path / "run", random.Random(0)
    more = ["steps=24", "eval.every=12", "checkpoint.every=1", "max_restarts=40"]
    whole = launcher("ray", f"address={cluster.address}", *words, *more, folder=tmp_path / "whole", env=cluster.env).ended()
    assert whole.code == 0, whole.err
    launch = launcher("ray", f"address={cluster.address}", *words, *more, folder=folder, env=cluster.env)
    for number in range(20):
        before = launch.step()
        until(lambda before=before: launch.step() > before or launch.process.poll() is not None, 120)
        time.sleep(draws.uniform(0.0, 0.5))
        if launch.process.poll() is not None:
            break
        if number % 5 == 4:
            kill_raylet(cluster, 0)
            time.sleep(4.0)
            revive(cluster)
        elif pids := launch.ranks():
            kill_rank(cluster, draws.choice(pids))
    ended = launch.ended(400)
    assert ended.code == 0, ended.err
    assert metrics(folder) == metrics(tmp_path / "whole")
    downtimes = [float(str(restart["downtime_seconds"])) for restart in restarts(folder)]
    print(f"downtimes: {downtimes}")
    assert len(downtimes) >= 20 and max(downtimes) < DOWNTIME
    assert left_behind(folder) == []
