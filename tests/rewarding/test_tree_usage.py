"""What all processes of a program use together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.rewarding import kernel, sandbox
from rlkit.rewarding.sandbox import SandboxLimits
from rlkit.rewarding.tree_usage import MemoryGroup, TreeLimits, find_group_parent, is_over
from tests.conftest import environment
from tests.rewarding.conftest import explain_no_sandbox, find_sandbox

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


def make_groups(root: Path, offered: str, given: str = "", marked: bool = True) -> Path:
    """A tree like that of a cgroup file system, with a unit, perhaps delegated, whose process is in a group below it."""
    own = root / "work.slice" / "run.service" / "main"
    own.mkdir(parents=True)
    for folder in (own.parent, root):
        (folder / "cgroup.controllers").write_text(offered)
        (folder / "cgroup.subtree_control").write_text(given)
        (folder / "cgroup.procs").touch()
    (root / "self").write_text("1:cpu:/other\n0::/work.slice/run.service/main\n")
    if marked:
        try:
            os.setxattr(own.parent, "user.delegate", b"1")
        except OSError as error:
            pytest.skip(f"files here have no attributes: {error}")
    return root


@pytest.mark.parametrize(
    ("offered", "marked", "found"),
    [("cpu memory pids\n", True, True), ("cpu pids\n", True, False), ("\n", True, False), ("cpu memory pids\n", False, False)],
    ids=["delegated", "without memory", "without any", "another's"],
)
def test_groups_are_made_in_a_delegated_unit_alone(tmp_path: Path, offered: str, marked: bool, found: bool) -> None:
    root = make_groups(tmp_path, offered, offered if not marked else "", marked)
    unit = root / "work.slice" / "run.service"
    assert find_group_parent(root, root / "self") == (unit if found else None)
    (unit / "cgroup.procs").unlink()  # as one that this user may not write
    assert find_group_parent(root, root / "self") is None
    (root / "self").write_text("1:memory:/version/one\n")
    assert find_group_parent(root, root / "self") is None


@pytest.mark.parametrize("own", ["/", "/init"], ids=["the kernel's root", "a container's"])
def test_the_root_is_nobody_elses(tmp_path: Path, own: str) -> None:
    for given in ("cpu memory pids\n", "cpu\n"):
        root = make_groups(tmp_path / given[:5].strip(), "cpu memory pids\n", given, marked=False)
        (root / "self").write_text(f"0::{own}\n")
        assert find_group_parent(root, root / "self") == (root if "memory" in given else None)


def test_a_group_that_cannot_be_joined_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cgroup\.subtree_control"):  # a plain folder gets none of the kernel's files
        MemoryGroup(tmp_path, TreeLimits(MIB, 1, 0))
    assert list(tmp_path.iterdir()) == []


def test_the_header_names_a_cgroup_only_where_a_program_starts_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if refused := explain_no_sandbox():
        pytest.skip(refused)
    monkeypatch.setattr(sandbox, "find_group_parent", lambda: tmp_path)  # where no group can be limited
    assert "memory limited for each process and summed every 50 ms" in sandbox.choose_sandbox.__wrapped__().describe()
    assert list(tmp_path.iterdir()) == []


class Unlimited(MemoryGroup):
    """Of a kernel whose memory controller belongs to version 1: everything but the limits is as it is elsewhere."""

    def _limit(self, limits: TreeLimits) -> None:
        pass


@pytest.fixture
def groups() -> Iterator[Path]:
    """A group of this test in a real cgroup file system of version 2, with or without the memory controller."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    own = [line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/")]
    try:
        folder = (places[0] / own[0]) / f"test-{os.getpid()}"
        folder.mkdir()
    except (IndexError, OSError) as error:
        pytest.skip(f"NO CGROUP of version 2 can be created here: that groups are joined and removed was not tried ({error!r})")
    yield folder
    for left in folder.glob("*/"):
        left.rmdir()
    folder.rmdir()


def list_groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_group_is_removed_when_its_last_process_has_ended(groups: Path) -> None:
    group = Unlimited(groups, TreeLimits(MIB, 1, 0))
    (name,) = list_groups(groups)
    child = subprocess.Popen(["sleep", "60"])
    os.write(group.descriptor, str(child.pid).encode())
    slow = groups / name / "slow"  # like a process that takes a moment to end, it keeps the group from being removed
    slow.mkdir()
    timer = threading.Timer(0.2, slow.rmdir)
    timer.start()
    group.close()
    timer.join()
    assert child.wait() == -signal.SIGKILL and list_groups(groups) == []


ENDLESS = """
import os, time
try:
    os.fork()
except OSError:  # Landlock before Linux 6.12
    pass
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["namespaces", "landlock"])
def test_programs_are_in_their_group_and_it_goes_with_them(kind: str, groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_sandbox(kind)
    if isinstance(found, str):
        pytest.skip(found)
    processes = 1 if 0 < found.landlock_abi < kernel.SCOPES_SINCE else 2

    def interrupt(*_: object) -> bool:
        if [len((groups / name / "cgroup.procs").read_text().split()) for name in list_groups(groups)] == [processes]:
            raise InterruptedError
        return False

    monkeypatch.setattr(sandbox, "MemoryGroup", Unlimited)
    monkeypatch.setattr(sandbox, "is_over", interrupt)
    with pytest.raises(InterruptedError):
        sandbox.run_each(ENDLESS, [""], SandboxLimits(seconds=20), sandbox=replace(found, groups=groups))
    assert list_groups(groups) == []


KILLED = """
import os, sys
from pathlib import Path
from rlkit.rewarding.tree_usage import MemoryGroup, TreeLimits
MemoryGroup._limit = lambda *_: None
MemoryGroup(Path(sys.argv[1]), TreeLimits(1, 1, 0))
os.kill(os.getpid(), 9)
"""


def test_the_group_of_a_killed_process_is_removed_by_the_next(groups: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(groups)], env=environment())
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    (left,) = list_groups(groups)
    own = Unlimited(groups, TreeLimits(MIB, 1, 0))
    (found,) = list_groups(groups)
    other = Unlimited(groups, TreeLimits(MIB, 1, 0))
    assert found != left and len(list_groups(groups)) == 2  # the first is not taken from a process that lives
    own.close()
    other.close()
    assert killed.wait() == -signal.SIGKILL and list_groups(groups) == []


def test_a_program_beyond_its_group_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    if explain_no_sandbox() or sandbox.choose_sandbox().groups is None:
        pytest.skip("NO CGROUP of version 2 with memory can be written here: that the kernel holds a group's limit was not tried")
    monkeypatch.setattr(sandbox, "is_over", lambda *_: False)  # which looks at all processes too: the group alone kills
    started = time.monotonic()
    assert sandbox.run_python(GROWING, limits=SandboxLimits(seconds=10, memory_mib=256)).stdout == ""
    assert time.monotonic() - started < 5
