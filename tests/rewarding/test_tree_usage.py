"""What all processes of a program use together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkit.rewarding import sandbox
from rlkit.rewarding.sandbox import SandboxLimits
from rlkit.rewarding.tree_usage import MemoryGroup, TreeLimits, find_group_parent, is_over

MIB = 2**20
SHARED = """
import os, time
x = bytearray(60 * 2**20)
for n in range(3):
    if os.fork() == 0: time.sleep(60)
print(flush=True)
time.sleep(60)
"""
GROWING = """
import os, time
for n in range(6):
    if os.fork() == 0:
        x = bytearray(100 * 2**20)
        time.sleep(9)
time.sleep(9)
print(1)
"""


def test_pages_that_processes_share_count_once() -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", SHARED], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        for memory, over in ((200, False), (50, True)):  # 60 MiB, and 4 times 60 where each counts them
            assert is_over(TreeLimits(memory * MIB, 99, 0), os.getpid(), 0, None) >= over
        assert not is_over(TreeLimits(200 * MIB, 3, 0), child.pid, 0, None) and is_over(TreeLimits(10 * MIB, 2, 0), child.pid, 0, None)
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def test_files_count_and_so_does_what_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * MIB)
    assert [is_over(TreeLimits(MIB, 9, disk), 2**22, 0, tmp_path) for disk in (2 * MIB, MIB // 2)] == [False, True]
    for number in range(5000):
        (tmp_path / str(number)).touch()
    assert is_over(TreeLimits(MIB, 9, 99 * MIB), 2**22, 0, tmp_path)


def make_groups(root: Path, controllers: str) -> Path:
    """A tree like that of a cgroup file system; the kernel's own is tried below."""
    own = root / "work.slice" / "run.scope"
    own.mkdir(parents=True)
    (root / "work.slice" / "cgroup.subtree_control").write_text(controllers)
    (root / "work.slice" / "cgroup.procs").touch()
    (own / "cgroup.subtree_control").write_text("\n")
    (root / "self").write_text("1:cpu:/other\n0::/work.slice/run.scope\n")
    return root


@pytest.mark.parametrize(("controllers", "found"), [("cpu memory pids\n", True), ("cpu pids\n", False), ("\n", False)])
def test_a_group_is_made_where_its_parent_gives_memory_on(tmp_path: Path, controllers: str, found: bool) -> None:
    root = make_groups(tmp_path, controllers)
    assert find_group_parent(root, root / "self") == (root / "work.slice" if found else None)
    (root / "work.slice" / "cgroup.procs").unlink()  # as one that this user may not write
    assert find_group_parent(root, root / "self") is None
    (root / "work.slice" / "cgroup.procs").touch()
    (root / "self").write_text("1:memory:/version/one\n")
    assert find_group_parent(root, root / "self") is None


def test_a_group_that_cannot_be_joined_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cgroup\.procs"):  # a plain folder gets none of the kernel's files
        MemoryGroup(tmp_path, TreeLimits(MIB, 1, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_program_beyond_its_group_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_group_parent() is None:
        pytest.skip("NO CGROUP of version 2 with memory can be written here: that the kernel holds a group's limit was not tried")
    monkeypatch.setattr(sandbox, "is_over", lambda *_: False)  # which looks at all processes too: the group alone kills
    started = time.monotonic()
    assert sandbox.run_python(GROWING, limits=SandboxLimits(seconds=10, memory_mib=256)).stdout == ""
    assert time.monotonic() - started < 5
