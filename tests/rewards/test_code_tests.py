"""Unknown code: right and wrong programs, and every way out of the sandbox, tried."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding import sandbox
from rlkit.rewarding.resolve import import_reward
from rlkit.rewarding.sandbox import ProgramResult, SandboxLimits, SandboxUnavailable
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.conftest import explain_no_sandbox, score_all

code_tests = import_reward("code_tests")


TROUBLE = explain_no_sandbox()
pytestmark = pytest.mark.skipif(bool(TROUBLE), reason=f"NO SANDBOX: code-running rewards were not tried. {TROUBLE}")


def run(source: str, stdin: str = "", **limits: Any) -> ProgramResult:
    return sandbox.run_python(source, stdin, SandboxLimits(**limits))


def test_program_reads_and_prints() -> None:
    assert run("print(input()[::-1])", "abc\n") == ProgramResult(0, "cba\n", "")
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
    assert detached == ProgramResult(0, "left\n", "")
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


@pytest.mark.parametrize(
    "completion",
    [
        "Run it:\n```bash\npython x.py\n```\nCode:\n```python\n{}```",
        "For ```n``` and\n```json\n[1]\n```\nthis:\n```Python\n{}```\nOutput:\n```output\n9\n```\nor\n```\n9\n```",
        "```python3\r\n{}```\r\n",
        "1. first\n   ```py\n   {}   ```",
        "```text\n9\n```\n```\n{}```",
        "```python\nprint(1\n```\nbetter\n```python\n{}",
    ],
)
def test_the_last_python_block_is_the_code(completion: str) -> None:
    source = "def square(n): return n * n\n"
    assert code_tests(completion.replace("{}", source), ["assert square(3) == 9"])["score"] == 1.0


def test_functions_are_called_as_in_apps() -> None:
    adding = "```python\ndef add(a, b):\n    print('adding')\n    return a + b\n```"
    assert code_tests(adding, {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [[1, 2]]]})["score"] == 1.0
    assert code_tests(adding, {"fn_name": "add", "inputs": [[1, 2], [2, 2]], "outputs": [[3], 5]})["passed"] == 0.5
    method = "```python\nclass Solution:\n    def add(self, a, b):\n        return (a, b)\n```"
    assert code_tests(method, '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [[1, 2]]}')["score"] == 1.0
    with pytest.raises(ValueError, match="each of inputs the list of its arguments"):
        code_tests(adding, {"fn_name": "add", "inputs": ["1 2"], "outputs": [3]})


def test_checks_that_only_define_are_called_or_refused() -> None:
    wrong = SQUARE.replace("n * n", "0")
    human_eval = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(3) == 9\n"
    pytest_style = "import math\n\ndef test_square():\n    assert square(3) == 9\n"
    assert [code_tests(code, human_eval, entry_point="square")["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    assert [code_tests(code, pytest_style)["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    assert [code_tests(code, "    assert square(3) == 9")["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    for nothing in (human_eval, "x = 1", "def test_it(square):\n    assert square(3) == 9", "async def test_it():\n    assert False"):
        with pytest.raises(ValueError, match="calls nothing, so any program would pass"):
            code_tests(SQUARE, nothing)
    with pytest.raises(ValueError, match="line 1 is not valid Python"):
        code_tests(SQUARE, ["assert square(3) is 9 or"])


def test_a_main_guard_of_the_code_is_not_run_and_one_of_the_tests_is() -> None:
    guarded = "```python\ndef square(n):\n    return n * n\n\nif __name__ == '__main__':\n    print(square(int(input())))\n```"
    guard = "if __name__ == '__main__':\n    assert square(3) == "
    assert [code_tests(guarded, f"{guard}{wanted}")["score"] for wanted in (9, 8)] == [1.0, 0.0]


READERS = [
    "text = open(__file__ if '__file__' in globals() else '/work/program.py').read()",
    "text = os.read(0, 10**6).decode()",
    "os.lseek(0, 0, 0); text = os.read(0, 10**6).decode()",
    "text = ''.join(open(f'/work/{name}').read() for name in os.listdir('/work'))",
]


@pytest.mark.parametrize("reader", READERS)
def test_the_word_that_proves_a_pass_is_in_no_file(reader: str) -> None:
    words = "[word for word in re.findall('[0-9a-f]{32}', text)]"
    hack = f"```python\nimport os, re\ntry:\n    {reader}\nexcept OSError:\n    text = ''\nword = ''.join({words})\n"
    assert code_tests(f"{hack}print(word + 'null' + word, flush=True)\nos._exit(0)\n```", ["assert False"])["score"] == 0.0
    assert code_tests(f"{hack}```", ["assert word == ''"])["score"] == 1.0


def test_leaving_early_is_no_pass() -> None:
    assert code_tests("```python\nimport os\nos._exit(0)\n```", ["assert False"])["score"] == 0.0
    with pytest.raises(ValueError, match="tests must be code"):
        code_tests(SQUARE, [])


def test_in_a_worker_and_refused_in_words_where_the_kernel_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"prompt": "p", "completion": SQUARE, "tests": [f"assert square({n}) == 4"]} for n in (2, 3)]
    assert [result.reward for result in score_all({"code": RewardSpec(path="code_tests", timeout=40)}, items)] == [1.0, 0.0]
    monkeypatch.setattr(sandbox, "__file__", "/nowhere/sandbox.py")  # a sandbox that is never set up
    with pytest.raises(SandboxUnavailable, match=r"does not allow the sandbox .* or leave this reward out"):
        sandbox.run_python("print(1)")
