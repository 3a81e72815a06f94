"""Mistakes of a user: reported with a fix and exit code 2, within 30 s, before anything is loaded."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch import preflight, spec
from launch.node import find_interface, inspect_installation, read_free_gib, set_network_interface
from launch.preflight import Problem
from rlkit.errors import UserError
from tests.conftest import ROOT, Ended, free_port
from tests.launch.conftest import Hosts, hosts, launcher, left_behind

LIMIT = 30.0  # seconds


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2, 3) as made:
        yield made


def refused(folder: Path, *words: str, cluster: Hosts | None = None, kind: str = "ray") -> str:
    """The stderr of a launch that must not start."""
    start = time.monotonic()
    if cluster:
        words = (f"address={cluster.address}", *words)
    ended: Ended = launcher(kind, "recipe=grpo_math", *words, folder=folder, env=cluster.env if cluster else None).ended(60)
    took = time.monotonic() - start
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert took < LIMIT, took
    assert left_behind(folder) == []
    return ended.err


# -- words -------------------------------------------------------------------------------------------------------------------------


def test_words_of_the_launcher_and_of_the_recipe() -> None:
    assert [spec.expand_key(word) for word in ("nodes=2", "steps=3", "optim.lr=1", "recipe=x", "--help")] == [
        "launch.nodes=2",
        "steps=3",
        "optim.lr=1",
        "recipe=x",
        "--help",
    ]
    with pytest.raises(UserError, match=r"unknown key gpus_per_nod \(did you mean gpus_per_node"):
        spec.expand_key("gpus_per_nod=8")


def test_bounds_and_unknown_keys_of_the_launcher() -> None:
    with pytest.raises(UserError, match=r"launch.nodes=0 is not valid: it should be greater than or equal to 1"):
        spec.parse_launch(["recipe=grpo_math", "nodes=0"])
    with pytest.raises(UserError, match=r"unknown key launch.max_restart \(did you mean max_restarts"):
        spec.parse_launch(["recipe=grpo_math", "launch.max_restart=1"])


def test_a_restart_goes_on_whatever_resume_says(tmp_path: Path) -> None:
    made = spec.parse_launch(["recipe=grpo_math", "resume=never", f"output_dir={tmp_path / 'a b'}"])
    assert isinstance(made, spec.LaunchSpec)
    assert made.build_command("python", first=True)[-1] == f"output_dir='{tmp_path / 'a b'}'"
    assert made.build_command("python", first=False)[-1] == "resume=auto"
    assert made.folder == tmp_path / "a b"


def test_what_goes_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RLKIT_X", "HF_HOME", "NCCL_DEBUG", "MINE", "OTHER"):
        monkeypatch.setenv(name, "1")
    made = spec.parse_launch(["recipe=grpo_math", "env=[MINE]"])
    assert isinstance(made, spec.LaunchSpec)
    assert {"RLKIT_X", "HF_HOME", "NCCL_DEBUG", "MINE"} <= made.collect_environment().keys() and "OTHER" not in made.collect_environment()


# -- looking at a node -------------------------------------------------------------------------------------------------------------


def test_a_probe_sees_code_and_versions(tmp_path: Path) -> None:
    here = inspect_installation("/", {**os.environ, "PYTHONPATH": str(ROOT)})
    assert here["at"] == str(ROOT / "rlkit") and len(here["code"]) == 12 and here["versions"]["torch"]
    copy = other_rlkit(tmp_path)
    there = inspect_installation("/", {**os.environ, "PYTHONPATH": str(copy)})
    assert there["code"] != here["code"]
    shutil.copy2(ROOT / "rlkit" / "seeds.py", copy / "rlkit" / "seeds.py")
    assert inspect_installation("/", {**os.environ, "PYTHONPATH": str(copy)})["code"] == here["code"]  # where it lies does not matter
    (problem,) = preflight.check_installation("n", there, here)
    assert (problem.node, problem.fix) == ("n", "git pull, or copy it there")
    old = {**here, "python": "3.9.2", "versions": {**here["versions"], "torch": "2.0.0"}}
    assert [t.what.split(",")[0] for t in preflight.check_installation("n", old, here)] == ["Python 3.9.2", "torch 2.0.0"]


def test_nodes_whose_folders_differ_are_found() -> None:
    markers = {"a": ".x-a", "b": ".x-b", "c": ".x-c"}
    shared = {"a": [".x-a", ".x-b"], "b": [".x-a", ".x-b"], "c": [".x-c"]}
    (problem,) = preflight.check_shared_folder(shared, markers, Path("/runs"))
    assert problem == Problem("c", "/runs is not the folder that a has under this name", problem.fix)


def test_the_table_has_a_line_for_each_problem() -> None:
    text = preflight.format_problems([Problem("10.0.0.2", "no rlkit", "install it"), Problem("10.0.0.13", "0 GPUs, 8 needed", "fewer")])
    assert text.splitlines() == [
        "  node       what is wrong     how to fix it",
        "  10.0.0.2   no rlkit          install it",
        "  10.0.0.13  0 GPUs, 8 needed  fewer",
    ]


def test_what_a_node_knows_of_itself() -> None:
    assert find_interface("127.0.0.3") == "lo"
    assert find_interface("203.0.113.7") is None
    assert 0 < read_free_gib() < 10_000


def test_the_network_interface_of_a_rank() -> None:
    both = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    assert set_network_interface({}, None, "127.0.0.3") == dict.fromkeys(both, "lo")
    assert set_network_interface({both[1]: "ib0"}, None, "127.0.0.3") == {both[0]: "lo", both[1]: "ib0"}
    assert set_network_interface({both[1]: "ib0"}, "eth7", "127.0.0.3") == dict.fromkeys(both, "eth7")
    assert set_network_interface({}, None, "203.0.113.7") == {}


# -- real launches -----------------------------------------------------------------------------------------------------------------


def test_one_machine_is_asked_for_what_it_has_not(tmp_path: Path) -> None:
    assert "launch.gpus_per_node=99, and this machine shows" in refused(tmp_path / "run", "gpus_per_node=99", kind="local")


def test_addresses_where_nothing_is(tmp_path: Path) -> None:
    closed = f"127.0.0.1:{free_port()}"
    told = refused(tmp_path / "run", "nodes=2", f"address={closed}")
    assert f"launch.address={closed}: nothing answers there" in told and "ray start --head" in told
    assert "write host:port" in refused(tmp_path / "run", "address=ray://somewhere")


@pytest.mark.slow
def test_more_than_the_cluster_has(cluster: Hosts, tmp_path: Path) -> None:
    told = refused(tmp_path / "run", "nodes=2", "gpus_per_node=8", cluster=cluster)
    assert [line.split("  ")[1:3] for line in told.splitlines() if "needed" in line] == [
        ["127.0.0.2", "0 GPUs, 8 needed"],
        ["127.0.0.3", "0 GPUs, 8 needed"],
    ]
    told = refused(tmp_path / "run", "nodes=5", cluster=cluster)
    assert "2 nodes in the cluster, nodes=5 needed" in told and "`ray start --address=" in told


@pytest.mark.slow
def test_a_port_that_is_taken(cluster: Hosts, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(tmp_path / "run", "nodes=2", f"port={port}", cluster=cluster)
    assert f"launch.port={port} is in use there" in told


@pytest.mark.slow
def test_a_token_that_is_not_the_clusters_and_a_port_that_is_no_head(cluster: Hosts, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 32)
    wrong = replace(cluster, env=cluster.env | {"RAY_AUTH_TOKEN_PATH": str(token)})
    assert "RAY_AUTH_TOKEN_PATH (with RAY_AUTH_MODE=token) names its token" in refused(tmp_path / "run", cluster=wrong)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        told = refused(tmp_path / "run", f"address=127.0.0.1:{other.getsockname()[1]}")
    assert "this is the port of the head node" in told


@pytest.mark.slow
def test_another_rlkit_and_a_folder_of_its_own(tmp_path: Path) -> None:
    """The second host has an older copy of rlkit, a file system of its own under the output folder, and lacks the data."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a folder that only one host sees needs root and `unshare -m`: the check of the shared folder was not tried")
    private = tmp_path / "private"
    private.mkdir()
    rows = private / "rows.jsonl"
    rows.write_text('{"question": "1 + 1", "answer": "2"}\n')
    script = f'mount -t tmpfs none {private} && exec "$0" "$@"'
    with hosts(2) as cluster:
        cluster.add(3, prefix=["unshare", "-m", "sh", "-c", script], PYTHONPATH=str(other_rlkit(tmp_path)))
        told = refused(private / "run", "nodes=2", f"data.train={rows}", cluster=cluster)
    lines = [line for line in told.splitlines() if line.startswith("  127.0.0.3")]
    wrong = ["another rlkit at", "no folder", f"no {rows}", f"{private / 'run'} is not the folder that 127.0.0.2 has"]
    assert [what in line for what, line in zip(wrong, lines, strict=True)] == [True] * 4, told
    assert not any(line.startswith("  127.0.0.2") for line in told.splitlines())
    assert not (private / "run").exists()


def other_rlkit(folder: Path) -> Path:
    """A copy of rlkit in which one file differs."""
    for name in ("rlkit", "recipes", "rewards"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "copy" / "rlkit" / "seeds.py").open("a") as file:
        file.write("# older\n")
    return folder / "copy"
