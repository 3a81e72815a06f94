"""The process that enters a sandbox and runs programs in it, one after the other: `python -I -S -c ... <dict>`, without any package.

It starts for every sample that is graded, so it imports little.

Each program gets an empty folder and a standard input of its own. When its first process ends, or its time is over, all its processes are
killed before the next one starts. Where a program uses too much of the machine, the caller writes its number to the control pipe and sends
SIGUSR1.
"""

from __future__ import annotations

import os
import signal

from rlkit.rewarding import kernel
from rlkit.rewarding.landlock import Landlock
from rlkit.rewarding.namespaces import Namespaces

TYPE_CHECKING = False  # as in typing, whose import takes longer than a sandbox
if TYPE_CHECKING:
    from typing import Any

STDERR_BYTES = 1 << 20  # of what a program writes there: enough for its last traceback
PATH_VARIABLES = ("HOME", "TMPDIR")


def run_programs(configuration: dict[str, Any]) -> None:
    """Enter the sandbox, run all programs, write their results. Never returns.

    On the status pipe: a dot as each program starts, then why the sandbox cannot be set up, where it cannot.
    """
    status, results = configuration["status"], configuration["results"]
    pipes = configuration["pipes"]  # stdin and stdout of the one program of a session, in place of files
    for descriptor in (status, results, configuration["control"], *pipes, *filter(None, [configuration["group"]])):
        os.set_inheritable(descriptor, False)
    kernel.libc.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)  # when the caller ends
    try:
        limits, readable, links = configuration["limits"], configuration["readable"], configuration["links"]
        source = _read_exactly(0, configuration["sizes"][0])
        sandbox: Namespaces | Landlock
        if configuration["kind"] == "namespaces":
            sandbox = Namespaces(readable, links, limits["disk_mib"])
        else:
            sandbox = Landlock(readable, links, configuration["place"], configuration["abi"])
        signal.signal(signal.SIGTERM, lambda *_: _stop(sandbox))
        streams = [*pipes, *(os.memfd_create(name) for name in ("stdin", "stdout", "stderr")[len(pipes) :])]
        sandbox.enter()
        for number, size in enumerate(configuration["sizes"][1:], start=1):
            stdin = _read_exactly(0, size)
            if not pipes:
                _fill_streams(streams, stdin)
            code = _run_program(sandbox, number, source, streams, configuration)
            if not pipes:
                _write_result(code, streams, limits["output_mib"] << 20, results)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(status, str(error).encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def _fill_streams(streams: list[int], stdin: bytes) -> None:
    for stream in streams:
        os.ftruncate(stream, 0)
        os.lseek(stream, 0, os.SEEK_SET)
    os.pwrite(streams[0], stdin, 0)


def _write_result(code: int | None, streams: list[int], output: int, results: int) -> None:
    out, err = os.pread(streams[1], output, 0), os.pread(streams[2], STDERR_BYTES, 0)
    with open(results, "ab", closefd=False) as file:
        file.write(f"{code} {len(out)} {len(err)}\n".encode() + out + err)


def _stop(sandbox: Namespaces | Landlock) -> None:
    """The caller is gone, or wants no more."""
    sandbox.kill_programs()
    sandbox.remove()
    os._exit(1)


def _run_program(
    sandbox: Namespaces | Landlock,
    number: int,
    source: bytes,
    streams: list[int],
    configuration: dict[str, Any],
) -> int | None:
    """The exit code: None where the time ran out, negative where a signal ended it. Raises OSError where the program cannot start."""
    sandbox.renew_folder()
    with open(f"{sandbox.folder}/program.py", "wb") as file:
        file.write(source)
    ended: list[str] = []  # why it was killed, or that it is over

    def kill(kind: int, frame: object) -> None:
        if kind == signal.SIGUSR1 and b"%d" % number not in _read_waiting(configuration["control"]).split():
            return  # meant for an earlier one
        if not ended:
            ended.append("time" if kind == signal.SIGALRM else "use")
            sandbox.kill_programs()

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGUSR1, kill)
    ready, report = os.pipe()  # closed by the kernel when the program starts
    program = os.fork()
    if program == 0:
        _become_program(sandbox, streams, report, configuration)
    os.close(report)
    trouble = b"".join(iter(lambda: os.read(ready, 4096), b""))
    os.close(ready)
    if trouble:
        raise OSError(trouble.decode(errors="replace"))
    if isinstance(sandbox, Landlock):
        sandbox.program = program
    os.write(configuration["status"], b".")
    if not configuration["pipes"]:  # the caller of a session knows the time of each of its requests
        signal.setitimer(signal.ITIMER_REAL, configuration["limits"]["seconds"])
    status = _wait_for(program)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not isinstance(sandbox, Landlock) or sandbox.abi >= kernel.SCOPES_SINCE:
        sandbox.kill_programs()  # what it left; where it could start no processes there is nothing
    ended.append("")
    _reap_all()
    return None if ended[0] == "time" else os.waitstatus_to_exitcode(status)


def _read_waiting(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _reap_all() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _wait_for(program: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == program:
            return status


def _become_program(sandbox: Namespaces | Landlock, streams: list[int], report: int, configuration: dict[str, Any]) -> None:
    """In the new process. Never returns."""
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(sandbox.folder)
        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
        if configuration["group"]:
            os.write(configuration["group"], b"0")
        sandbox.confine()
        kernel.libc.prctl(kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        limits = configuration["limits"]
        processes = limits["processes"] if sandbox.has_own_user else None
        kernel.set_limits(limits["seconds"], limits["memory_mib"], limits["disk_mib"], processes)
        kernel.join_new_keyring()
        kernel.install_filter(bytes.fromhex(configuration["filter"]))
        folder, python = sandbox.folder, configuration["python"]
        environment = dict.fromkeys(PATH_VARIABLES, folder) | {"PYTHONHASHSEED": "0"}
        options = ["-I"]
        if configuration["links"]:
            options = ["-s", "-P"]
            environment |= {"PYTHONPATH": sandbox.packages, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execve(python, [python, *options, "-S", "-B", f"{folder}/program.py"], environment)
    except BaseException as error:  # noqa: BLE001 - reported, and the program does not run
        os.write(report, str(error).encode(errors="replace") or b"unknown")
    os._exit(1)


def _read_exactly(descriptor: int, size: int) -> bytes:
    content = b""
    while len(content) < size:
        if not (piece := os.read(descriptor, size - len(content))):
            raise OSError("the programs were cut off")
        content += piece
    return content
