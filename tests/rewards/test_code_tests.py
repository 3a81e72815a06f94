"""Code that nobody has read: right and wrong programs, and each way out of the walls, tried."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding import RewardSpec, resolve, sandbox
from rlkit.rewarding.sandbox import Limits, Result, Unavailable
from tests.rewarding.conftest import judge_all

code_tests = resolve("code_tests")


def _walls() -> str:
    try:
        sandbox.run("")
    except Unavailable as error:
        return str(error)
    return ""


TROUBLE = _walls()
pytestmark = pytest.mark.skipif(bool(TROUBLE), reason=f"NO SANDBOX: code-running rewards were not tried. {TROUBLE}")


def run(source: str, stdin: str = "", **limits: Any) -> Result:
    return sandbox.run(source, stdin, Limits(**limits))


def test_program_reads_and_prints() -> None:
    assert run("print(input()[::-1])", "abc\n") == Result(0, "cba\n", "")
    assert run("import sys; sys.exit(3)").exit_code == 3
    assert run("import os; os.abort()").exit_code == -6


@pytest.mark.parametrize("place", [__file__, "/etc/passwd", "/proc/1/environ", str(Path.home()), "../../../../etc/hostname"])
def test_no_file_outside_its_folder(place: str) -> None:
    result = run(f"import os\nprint(os.listdir({place!r}) if os.path.isdir({place!r}) else open({place!r}).read())")
    allowed = "FileNotFoundError" in result.stderr or "NotADirectoryError" in result.stderr
    assert allowed or set(eval(result.stdout)) <= {".pyenv"}  # the way to Python's own libraries, where they lie in a home folder


def test_no_writing_but_into_a_bounded_folder() -> None:
    assert "Read-only file system" in run("open('/usr/x', 'w')").stderr
    assert "Read-only file system" in run("open('/x', 'w')").stderr
    assert "No space left on device" in run("open('/work/x', 'w').write('x' * 10**8)", disk_mib=4).stderr
    assert run("open('/work/x', 'w').write('x'); print(open('/work/x').read())").stdout == "x\n"


def test_no_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)\nprint('through')"
        result = run(source)
    assert result.stdout == "" and "OSError" in result.stderr


def test_no_way_to_outlive_the_limit() -> None:
    started = time.monotonic()
    for source in (
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time; signal.pthread_sigmask(0, range(1, 65)); time.sleep(60)",
    ):
        assert run(source, seconds=0.5).exit_code is None
    detached = run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.environ['MARK'] = 'x'\n    time.sleep(600)\nprint('left')")
    assert detached == Result(0, "left\n", "")
    assert time.monotonic() - started < 30
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and b"/work/program.py" in _command(pid)]


def _command(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


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
"""


def test_bounds_of_memory_processes_and_capabilities() -> None:
    assert "MemoryError" in run("bytearray(2**30)", memory_mib=256).stderr
    assert run(FORKS, processes=16).stdout == "True\n"
    nested = "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.unshare(0x10000000), libc.mount(b'none', b'/work', b'tmpfs', 0, b''))"
    assert run(nested).stdout == "-1 -1\n"
    assert run("import os; print(sorted(os.environ))").stdout == "['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'TMPDIR']\n"


SQUARE = "Here it is:\n```python\ndef square(n):\n    return n * n\n```"


def test_asserts() -> None:
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == 4"]) == {"score": 1.0, "passed": 1.0}
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == -4"]) == {"score": 0.0, "passed": 0.5}
    assert code_tests(SQUARE, "assert square(3) == 9")["score"] == 1.0
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == -4"], partial=True)["score"] == 0.5


def test_inputs_and_outputs() -> None:
    doubling = "```python\nprint(int(input()) * 2)\n```"
    assert code_tests(doubling, [{"input": "4\n", "output": "8"}, {"input": "5\n", "output": "10\n"}])["score"] == 1.0
    assert code_tests(doubling, {"inputs": ["4\n", "5\n"], "outputs": ["8", "11"]}, partial=True)["score"] == 0.5


def test_leaving_early_is_no_pass() -> None:
    assert code_tests("```python\nimport os\nos._exit(0)\n```", ["assert False"])["score"] == 0.0
    with pytest.raises(ValueError, match="tests must be code"):
        code_tests(SQUARE, [])


def test_in_a_worker_and_refused_in_words_where_the_kernel_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"prompt": "p", "completion": SQUARE, "tests": [f"assert square({n}) == 4"]} for n in (2, 3)]
    assert [verdict.reward for verdict in judge_all([RewardSpec("code", "code_tests", deadline=40)], items)] == [1.0, 0.0]
    monkeypatch.setattr(sandbox, "__file__", "/nowhere/sandbox.py")  # walls that are never built
    with pytest.raises(Unavailable, match=r"does not give the walls .* or leave this reward out"):
        sandbox.run("print(1)")
