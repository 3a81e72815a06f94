"""The trainer's side of a supervisor process: starts it over a socket pair, waits for its messages, ends it with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from rlkit.errors import RunFailed, UserError
from rlkit.rewarding.processes import is_stopped

# Programs do not work without these variables; everything else that user code needs is listed in rewarding.env.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # set by offline=true, which holds for user code too
FIXED_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # the GPU belongs to the trainer
    "HIP_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",  # the order of a set, and so a score that depends on it, is the same in every worker
    "OMP_NUM_THREADS": "1",  # there are many workers; several threads in each would compete with the trainer's
}
PROGRAM = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {} import {}; {}({}, {})"
CLOSE_SECONDS = 20.0
POLL_SECONDS = 1.0  # how often to look whether the supervisor is stopped, while waiting for it
STOPPED_POLLS = 10  # after which it will not go on by itself
CODE = {  # what supervisors run
    "the reward supervisor": "a reward function",
    "the environment supervisor": "the code of an environment",
}
SEND_SECONDS = 60  # the supervisor takes work at once; where it does not for so long, it is stopped or broken


def start_supervisor(serve: tuple[str, str], names: Sequence[str]) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start the process that runs `serve`, (module, function of a socket's descriptor and the trainer's process id). names: of environment
    variables that it gets too."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))  # struct timeval
    environment = {name: os.environ[name] for name in (*ENVIRONMENT, *OFFLINE, *names) if name in os.environ} | FIXED_ENVIRONMENT
    module, function = serve
    with theirs:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM.format(module, function, function, theirs.fileno(), os.getpid()),
                json.dumps(_build_import_path()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # only the trainer gets Ctrl-C from the terminal
        )
    return supervisor, Connection(ours.detach())


def end_supervisor(supervisor: subprocess.Popen[bytes], connection: Connection) -> None:
    """End the supervisor, the workers and every process that they started."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as end, contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # closing is not enough where a fork of this process holds a copy
        connection.close()
    supervisor.send_signal(signal.SIGCONT)  # where it is stopped, it could not end what it started
    try:
        supervisor.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        supervisor.kill()  # its workers die with it
        supervisor.wait()


class StopCheck:
    """Notices that a supervisor was stopped by a signal and stays so."""

    def __init__(self, supervisor: subprocess.Popen[bytes], what: str) -> None:
        self._supervisor, self._what = supervisor, what
        self._polls = 0  # in a row that found it stopped; not the time: this process may have been stopped with it

    def look(self) -> None:
        """Call it every POLL_SECONDS while nothing comes. Raises RunFailed where it was stopped for STOPPED_POLLS of them."""
        self._polls = self._polls + 1 if is_stopped(self._supervisor.pid) else 0
        if self._polls >= STOPPED_POLLS:
            raise RunFailed(
                f"{self._what} (process {self._supervisor.pid}) has been stopped by a signal (SIGSTOP), from outside or by "
                f"{CODE[self._what]}; the run can be resumed"
            )


def send_message(supervisor: subprocess.Popen[bytes], connection: Connection, message: Any, what: str) -> None:
    """Send a supervisor its next message. what, and what it raises: as for receive_message."""
    try:
        connection.send(message)
    except BlockingIOError:
        raise RunFailed(f"{what} (process {supervisor.pid}) took no work for {SEND_SECONDS} s") from None
    except OSError:
        while True:  # its last message may hold the reason
            receive_message(supervisor, connection, what)


def receive_message(supervisor: subprocess.Popen[bytes], connection: Connection, what: str) -> Any:
    """The next message of a supervisor, whose first word is its kind; waits for it. what: its name, a key of CODE.

    Raises UserError where it reports a mistake of the user, RunFailed where it crashed, is gone, or was stopped and stays so.
    """
    check = StopCheck(supervisor, what)
    try:
        while not connection.poll(POLL_SECONDS):
            check.look()
        message = connection.recv()
    except (EOFError, OSError):
        _raise_gone(supervisor, what)
    match message:
        case ("broken", reason):
            raise UserError(reason)
        case ("crashed", trace):
            raise RunFailed(f"{what} stopped because of an internal error; the run can be resumed\n{trace}")
    return message


def _raise_gone(supervisor: subprocess.Popen[bytes], what: str) -> NoReturn:
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(1.0)
    raise RunFailed(
        f"{what} (process {supervisor.pid}) is gone, exit status {supervisor.returncode}: "
        "killed from outside, or the machine ran out of memory (see dmesg); the run can be resumed"
    )


def _build_import_path() -> list[str]:
    here = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([os.path.abspath(entry) for entry in sys.path] + [here]))
