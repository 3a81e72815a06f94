"""launch.ray on two hosts: the same run as on one, stopped and continued, with one host less and with one more."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run
from tests.launch.conftest import Halt, Hosts, hosts, launcher, left_behind, metrics, restarts


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2, 3) as made:
        yield made


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def evaluations(folder: Path) -> dict[int, float]:
    return {row["step"]: row["eval/accuracy"] for row in metrics(folder) if "eval/accuracy" in row}


@pytest.mark.nightly(part="hosts")
def test_stopped_in_a_rollout_and_gone_on_with(cluster: Hosts, on_two: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM to the launcher; afterwards the metrics are those of two ranks that Ray knew nothing of."""
    folder, halt = tmp_path / "run", Halt(tmp_path / "halt").at("rollout", 3, 1)
    words = [f"address={cluster.address}", *on_two]
    launch = launcher("ray", *words, folder=folder, env=halt.environment(cluster.env))
    halt.reached(launch)
    asked = time.monotonic()
    launch.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    halt.release()
    stopped = launch.ended(60)
    assert stopped.code == 75, stopped.err
    assert time.monotonic() - asked < 30
    assert (folder / "checkpoints" / "step-000002" / "state.json").is_file()
    assert left_behind(folder) == []
    ended = launcher("ray", *words, folder=folder, env=cluster.env).ended()
    assert ended.code == 0, ended.err
    assert metrics(folder) == metrics(undisturbed)
    assert left_behind(folder) == []


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_run(small: list[str], tmp_path: Path) -> None:
    """One machine, no cluster named: one is started, with a token, and nothing of it is left."""
    words = ["address=local", "workers_per_node=2", *small, "rewarding.workers=1", "steps=1", "eval.every=0"]
    launch = launcher("ray", *words, folder=tmp_path / "run")
    place = launch.until(lambda: next(Path("/tmp").glob("rlkit-ray-*/token"), None))
    assert place.stat().st_mode & 0o777 == 0o600 and len(place.read_text()) == 64
    ended = launch.ended()
    assert ended.code == 0, ended.err
    assert not place.parent.exists() and left_behind(tmp_path / "run") == []


@pytest.mark.nightly(part="hosts")
@pytest.mark.timeout(2400)
def test_the_built_in_task_on_one_process_on_two_hosts_on_four_and_when_one_is_lost(tmp_path: Path) -> None:
    """The accuracy bar holds on two ranks and four, at every evaluation as on one, and where a host goes away for good on the way."""
    one = run("recipe=grpo_math", f"output_dir={tmp_path / 'one'}", timeout=600)
    assert one.code == 0, one.err
    words = ["recipe=grpo_math", "nodes=1", "workers_per_node=4", "rewarding.workers=1"]
    four = launcher("local", *words, folder=tmp_path / "four").ended(900)
    assert four.code == 0, four.err
    halt = Halt(tmp_path / "halt").at("update", 9, 1)
    with hosts(2, 3) as cluster:
        words = [f"address={cluster.address}", "recipe=grpo_math", "nodes=2", "rewarding.workers=1"]
        two = launcher("ray", *words, folder=tmp_path / "two", env=cluster.env).ended(600)
        assert two.code == 0, two.err
        launch = launcher("ray", *words, "elastic=true", folder=tmp_path / "elastic", env=halt.environment(cluster.env))
        halt.reached(launch)
        cluster.hosts["127.0.0.3"].kill()
        elastic = launch.ended(600)
        assert elastic.code == 0, elastic.err
    bar = {name: evaluations(tmp_path / name) for name in ("one", "two", "four", "elastic")}
    print(bar)
    assert all(accuracies[24] >= 0.95 for accuracies in bar.values())
    assert all(abs(bar["one"][step] - bar[many][step]) <= 0.03 for step in bar["one"] for many in ("two", "four"))
    (restart,) = restarts(tmp_path / "elastic")
    assert restart["on"] == "1 rank on 127.0.0.2" and restart["downtime_seconds"] < 60
    assert re.search(r"goes on after step 6", elastic.out)


@pytest.mark.slow
def test_a_host_that_is_lost_for_good_is_done_without(on_two: list[str], tmp_path: Path) -> None:
    halt = Halt(tmp_path / "halt").at("update", 3, 1)
    with hosts(2, 3) as cluster:
        words = [f"address={cluster.address}", *on_two, "elastic=true"]
        launch = launcher("ray", *words, folder=tmp_path / "run", env=halt.environment(cluster.env))
        halt.reached(launch)
        cluster.hosts["127.0.0.3"].kill()
        ended = launch.ended()
    assert ended.code == 0, ended.err
    (restart,) = restarts(tmp_path / "run")
    assert restart["on"] == "1 rank on 127.0.0.2" and restart["downtime_seconds"] < 60
    assert "goes on after step 2" in ended.out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4] and summary(tmp_path / "run")["status"] == "done"


@pytest.mark.slow
def test_a_checkpoint_of_one_rank_goes_on_with_two(cluster: Hosts, on_two: list[str], tmp_path: Path) -> None:
    folder, halt = tmp_path / "run", Halt(tmp_path / "halt").at("rollout", 3, 0)
    launch = launcher("ray", f"address={cluster.address}", *on_two, "nodes=1", folder=folder, env=halt.environment(cluster.env))
    pid = halt.reached(launch)
    assert os.geteuid() != 0 or os.getpriority(os.PRIO_PROCESS, pid) == 0  # of a Ray worker: 15
    launch.process.send_signal(signal.SIGUSR1)
    time.sleep(1.0)
    halt.release()
    assert launch.ended(60).code == 75
    ended = launcher("ray", f"address={cluster.address}", *on_two, folder=folder, env=cluster.env).ended()
    assert ended.code == 0, ended.err
    assert "goes on after step 2" in ended.out and "2 processes" in ended.out
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 3, 4] and summary(folder)["status"] == "done"


@contextlib.contextmanager
def two_networks() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces, 10.77.0.2 and 10.77.0.3 on a cable between them; the beginnings of commands that run inside."""
    names = [f"rlkit-{os.getpid()}-{side}" for side in "ab"]
    script = [f"ip netns add {name}" for name in names]
    script.append(f"ip link add veth-a netns {names[0]} type veth peer name veth-b netns {names[1]}")
    for name, side, number in zip(names, "ab", (2, 3), strict=True):
        script += [f"ip -n {name} addr add 10.77.0.{number}/24 dev veth-{side}", f"ip -n {name} link set veth-{side} up"]
        script.append(f"ip -n {name} link set lo up")
    made = subprocess.run(["sh", "-ec", "\n".join(script)], capture_output=True, text=True, check=False)
    try:
        if made.returncode:
            pytest.skip(
                f"no network namespaces here (iproute2 and root are needed): two separate hosts were not tried: {made.stderr.strip()}"
            )
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_hosts_with_networks_of_their_own(on_two: list[str], undisturbed: Path, tmp_path: Path) -> None:
    """The ranks meet on the cable, each at the interface that has its node's address; what they compute is the same."""
    folder, halt = tmp_path / "run", Halt(tmp_path / "halt").at("update", 1, 1)
    with two_networks() as (a, b), hosts(network="10.77.0") as cluster:
        cluster.add(2, prefix=a)
        cluster.add(3, prefix=b)
        words = [f"address={cluster.address}", *on_two]
        launch = launcher("ray", *words, folder=folder, env=halt.environment(cluster.env), prefix=a)
        pid = halt.reached(launch)
        seen = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        halt.release()
        ended = launch.ended()
    assert ended.code == 0, ended.err
    assert {b"GLOO_SOCKET_IFNAME=veth-b", b"MASTER_ADDR=10.77.0.2", b"RANK=1"} <= set(seen)
    assert not any(pair.startswith(b"RAY_") for pair in seen)
    assert metrics(folder) == metrics(undisturbed)
