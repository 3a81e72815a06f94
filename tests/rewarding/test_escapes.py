"""Programs that try to leave the sandboxes: each succeeds outside, and in none of them."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding import sandbox, syscalls
from rlkit.rewarding.sandbox import ProgramResult, Sandbox, SandboxLimits
from tests.conftest import environment

# Each ends with an error, or prints "escaped". SECRET: a file of this user; FOLDER: where it lies; VICTIM: a process of this user.
FILES = {
    "read a file": "assert open(SECRET).read() == 'the secret'",
    "read it by a link": "os.symlink(SECRET, 'soft'); assert open('soft').read() == 'the secret'",
    "give it another name": "os.link(SECRET, FOLDER + '/hard'); os.unlink(FOLDER + '/hard')",
    "write beside it": "open(FOLDER + '/new', 'w').close(); os.unlink(FOLDER + '/new')",
    "list its folder": "assert os.listdir(FOLDER)",
    "cut it": "os.truncate(SECRET, len('the secret'))",
    "empty a file that may be read": "os.close(os.open(EMPTY, os.O_RDONLY | os.O_TRUNC))",
    "change its mode": "os.chmod(SECRET, 0o600)",
    "change its owner": "os.chown(SECRET, os.getuid(), -1)",
    "change its date": "os.utime(SECRET)",
    "give it an attribute": "assert libc.setxattr(SECRET.encode(), b'user.x', b'1', 1, 0) == 0 or ctypes.get_errno() == 95",
    "watch it": "assert libc.inotify_add_watch(libc.inotify_init1(0), FOLDER.encode(), 2) >= 0",
    "keep a handle of it": "assert libc.syscall(NAME_TO_HANDLE_AT, -100, SECRET.encode(), handle, ctypes.byref(mount), 0) == 0",
    "write where Python lies": "open(PYTHON + '/new', 'w').close(); os.unlink(PYTHON + '/new')",
    "read the environment of a process": "assert b'PATH' in open(f'/proc/{VICTIM}/environ', 'rb').read()",
    "read the memory of a process": "open(f'/proc/{VICTIM}/mem', 'rb').close()",
}
OTHERS = {
    "connect by TCP": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "send by UDP": "assert socket.socket(2, 2).sendto(b'x', ('127.0.0.1', PORT)) == 1 and not INSIDE",
    "connect to a UNIX socket": "socket.socket(1, 1).connect(FOLDER + '/socket')",
    "connect to an abstract socket": "socket.socket(1, 1).connect(ABSTRACT)",
    "send out of a pair of sockets": "socket.socketpair(1, 2)[0].sendto(b'x', FOLDER + '/mailbox')",
    "send a signal": "os.kill(VICTIM, 0)",
    "send a signal by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(VICTIM), 0)",
    "have the kernel send one": "a, b = os.pipe(); fcntl.fcntl(a, fcntl.F_SETOWN, VICTIM)",
    "read limits": "resource.prlimit(VICTIM, resource.RLIMIT_CORE)",
    "set limits": "resource.prlimit(VICTIM, resource.RLIMIT_CORE, (0, 0))",
    "change a priority": "os.setpriority(os.PRIO_PROCESS, VICTIM, 1)",
    "choose its cores": "os.sched_setaffinity(VICTIM, os.sched_getaffinity(0))",
    "trace it": "assert libc.ptrace(0x4206, VICTIM, 0, 0) == 0",
    "map shared memory": "assert libc.shmat(SHARED, None, 0o10000) != -1",
    "see other processes": "assert VICTIM in [int(name) for name in os.listdir('/proc') if name.isdigit()]",
}
ESCAPES = FILES | OTHERS
BEFORE = """
import ctypes, fcntl, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_ssize_t
handle, mount = ctypes.create_string_buffer((64).to_bytes(4, "little") + bytes(132)), ctypes.c_int()
"""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the programs try to reach, as the lines that set their variables."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("the secret")
    (folder / "empty").write_text("")
    abstract = f"\0rlkit-{os.getpid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    shared = libc.shmget(0, 4096, 0o1600)
    victim = subprocess.Popen(["sleep", "300"])
    sockets = [socket.create_server(("127.0.0.1", 0))]
    for kind, name in ((socket.SOCK_STREAM, f"{folder}/socket"), (socket.SOCK_DGRAM, f"{folder}/mailbox"), (socket.SOCK_STREAM, abstract)):
        sockets.append(socket.socket(socket.AF_UNIX, kind))
        sockets[-1].bind(name)
        if kind == socket.SOCK_STREAM:
            sockets[-1].listen()
    handles = syscalls.get_number(syscalls.REFUSED_WITH_LANDLOCK["name_to_handle_at"], os.uname().machine)
    variables = {
        "SECRET": f"{folder}/secret",
        "EMPTY": f"{folder}/empty",
        "FOLDER": str(folder),
        "PYTHON": os.path.dirname(os.__file__),
        "VICTIM": victim.pid,
        "PORT": sockets[0].getsockname()[1],
        "ABSTRACT": abstract,
        "SHARED": shared,
        "NAME_TO_HANDLE_AT": handles,
    }
    yield "".join(f"{name} = {value!r}\n" for name, value in variables.items()) + BEFORE
    victim.kill()
    victim.wait()
    libc.shmctl(shared, 0, None)
    for one in sockets:
        one.close()


def write_programs(targets: str, inside: bool) -> list[str]:
    return [f"INSIDE = {inside}\n{targets}{source}\nprint('escaped')\n" for source in ESCAPES.values()]


def test_each_succeeds_outside(targets: str, tmp_path: Path) -> None:
    """Without this an escape that is misspelled would count as one that is held."""
    loop = "import os, sys\nfor source in eval(sys.stdin.read()):\n    if os.fork() == 0: exec(source); os._exit(0)\n    os.wait()"
    programs = write_programs(targets, inside=False)
    programs = [source.replace("print('escaped')", f"print({number}, flush=True)") for number, source in enumerate(programs)]
    done = subprocess.run([sys.executable, "-c", loop], input=repr(programs), capture_output=True, text=True, cwd=tmp_path)
    missing = [name for number, name in enumerate(ESCAPES) if str(number) not in done.stdout.split()]
    assert missing == [], done.stderr


def test_none_succeeds_inside(box: Sandbox, targets: str) -> None:
    results = sandbox.run_each("import sys\nexec(sys.stdin.read())", write_programs(targets, inside=True))
    assert [name for name, result in zip(ESCAPES, results, strict=True) if "escaped" in result.stdout or result.exit_code != 1] == []
    assert not [result.stderr for result in results if "NameError" in result.stderr or "SyntaxError" in result.stderr]


PLACES = [__file__, "/etc/passwd", "/proc/1/environ", str(Path.home()), "../../../../etc/hostname"]


def test_no_file_outside_its_folder(box: Sandbox) -> None:
    source = "import os, sys\nplace = sys.stdin.read()\nprint(os.listdir(place) if os.path.isdir(place) else open(place).read())"
    for result in sandbox.run_each(source, PLACES):
        refused = any(name in result.stderr for name in ("FileNotFoundError", "NotADirectoryError", "PermissionError"))
        assert refused or set(eval(result.stdout)) <= {".pyenv"}  # the way to Python's own libraries, where they lie in a home folder


def run(source: str, stdin: str = "", **limits: Any) -> ProgramResult:
    return sandbox.run_python(source, stdin, SandboxLimits(**limits))


def test_no_writing_but_into_a_bounded_folder(box: Sandbox) -> None:
    for place in ("/usr/x", "/x"):
        assert any(reason in run(f"open({place!r}, 'w')").stderr for reason in ("Read-only file system", "Permission denied"))
    assert run("open('x', 'w').write('x' * 10**8)", disk_mib=4).exit_code != 0
    many = "import time\nfor n in range(30): open(str(n), 'w').write('x' * 2**20)\ntime.sleep(3)\nprint('kept')"
    assert "kept" not in run(many, disk_mib=8).stdout
    assert run("open('x', 'w').write('x'); print(open('x').read())").stdout == "x\n"


MARK = f"rlkit-escape-{os.getpid()}"  # in the command line of programs that other tests must not be taken for


def mark(source: str) -> str:
    return f"import os, sys\nos.execv(sys.executable, ['python', '-I', '-S', '-c', {source!r}, {MARK!r}])"


def list_marked() -> list[str]:
    """The processes that marked programs have left."""
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and MARK.encode() in _read_command(pid)]


def test_no_way_to_outlive_the_limit(box: Sandbox) -> None:
    started = time.monotonic()
    endless = "import signal, time; signal.pthread_sigmask(0, range(1, 65)); time.sleep(60)"
    programs = [mark(source) for source in ("while True: pass", "import time; time.sleep(60)", endless)]
    results = sandbox.run_each("import sys\nexec(sys.stdin.read())", programs, SandboxLimits(seconds=0.5))
    assert [result.exit_code for result in results] == [None] * 3
    detached = mark("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint('left')")
    assert run(detached) == ProgramResult(0, "left\n", "") or "Operation not permitted" in run(detached).stderr
    assert time.monotonic() - started < 30 and list_marked() == []


def _read_command(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def test_nothing_of_a_program_is_left_for_the_next_one(box: Sandbox) -> None:
    """One leaves a process that prints on, files in a folder too deep for one path, and its input."""
    first = (
        "for _ in range(300): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('x', 'w')\n"
        "if os.fork() == 0:\n    os.setsid()\n    while True: os.write(1, b'ghost '); time.sleep(0.001)"
    )
    second = "time.sleep(0.1); print(os.listdir('.'), os.lseek(0, 0, 0), len(os.read(0, 9999)))"
    results = sandbox.run_each("import os, sys, time\nexec(sys.stdin.read())", [first, second])
    assert results[1] == ProgramResult(0, f"['program.py'] 0 {len(second)}\n", "")


FORKS = """
import os, time
n = 0
try:
    while n < 100:
        if os.fork() == 0:
            time.sleep(9)
        n += 1
except OSError:
    print(n < 20)
    raise SystemExit
time.sleep(5)
print(False)
"""
TREE = """
import os, time
for n in range(6):
    if os.fork() == 0:
        data = bytearray(100 * 2**20)
        time.sleep(9)
time.sleep(5)
print("kept")
"""


def test_bounds_of_memory_processes_and_capabilities(box: Sandbox) -> None:
    assert "MemoryError" in run("bytearray(2**30)", memory_mib=256).stderr
    assert "False" not in run(FORKS, processes=16, seconds=10).stdout
    started = time.monotonic()
    assert "kept" not in run(TREE, memory_mib=256, seconds=10).stdout  # each of them is within the limit
    assert time.monotonic() - started < 4
    nested = "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.unshare(0x10000000), libc.mount(b'none', b'/work', b'tmpfs', 0, b''))"
    assert run(nested).stdout == "-1 -1\n"
    assert run("import os; print(sorted(os.environ))").stdout == "['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'TMPDIR']\n"


KILLED = """
import sys
from rlkit.rewarding import sandbox
found = sandbox.Sandbox(*eval(sys.argv[1]))
sandbox.run_each(sys.argv[2], [""], sandbox.SandboxLimits(seconds=60), sandbox=found)
"""


def test_where_the_caller_is_killed_the_program_ends(box: Sandbox, tmp_path: Path) -> None:
    """And its folder goes with it."""
    env = environment(TMPDIR=str(tmp_path))
    program = mark("import time; time.sleep(60)")
    child = subprocess.Popen([sys.executable, "-c", KILLED, repr((box.kind, box.landlock_abi, "")), program], env=env)
    wait_for(lambda: list_marked() != [])
    child.kill()
    child.wait()
    wait_for(lambda: list_marked() == [] and list(tmp_path.iterdir()) == [])


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


AS_ANOTHER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rlkit.rewarding.sandbox import Sandbox, SandboxLimits, run_each
if int(sys.argv[2]):
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
os.environ["TMPDIR"] = "/tmp"
program = "import os, sys\\nexec(sys.stdin.read())"
forks = "import time\\nfor n in range(60):\\n    if os.fork() == 0: time.sleep(9)\\ntime.sleep(5); print('kept')"
hidden = "os.mkdir('a', 0o300); open('a/x', 'w'); os.mkdir('b', 0)"
print([(result.exit_code, result.stdout) for result in run_each(
    program, ["print(os.getuid() == os.stat('.').st_uid)", hidden, "print(os.listdir('.'))", forks], SandboxLimits(seconds=8),
    sandbox=Sandbox(*eval(sys.argv[3])))])
"""


@pytest.mark.slow
@pytest.mark.parametrize("user", [4321, 0])
def test_it_holds_for_every_user(box: Sandbox, user: int) -> None:
    """For root each sandbox of Landlock takes a user of its own; the tests above start a Python that no other user may reach."""
    python = Path("/usr/bin/python3")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True)
    if os.getuid() != 0 or version.stdout != "True\n":
        pytest.skip("needs root, and a Python from 3.11 in /usr/bin: the sandbox was not tried as another user")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(Path(sandbox.__file__).parents[1], Path(folder, "rlkit"))
        arguments = [folder, str(user), repr((box.kind, box.landlock_abi, ""))]
        done = subprocess.run([python, "-c", AS_ANOTHER, *arguments], capture_output=True, text=True, cwd="/")
    assert done.stderr == ""
    first, second, third, fourth = eval(done.stdout)
    assert (first, third) == ((0, "True\n"), (0, "['program.py']\n")) and second[0] in (0, -9) and "kept" not in fourth[1]
