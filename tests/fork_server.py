"""Runs of rlkit that fork from one process which has imported everything: a fork costs a fifth of what a new Python costs.

    server   python tests/fork_server.py SOCKET PID     forks one process for each connection, ends with process PID
    client   Fork(socket, program, arguments, env, cwd, out, err): one such process, like subprocess.Popen

A forked process shares with its parent what importing leaves behind and nothing else: it has no thread, has used no generator, and gets
the environment, folder, streams and arguments that it is started with. What differs from a new process: the seed of hash() is the
server's, and what a library reads from the environment as it is imported was read there. A fact about either needs `cold=True`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
MESSAGE_BYTES = 1 << 20
IMPORTED = (
    *("bitsandbytes", "datasets", "deepspeed", "peft", "tensorboard.summary.writer.event_file_writer", "torch.distributed.elastic"),
    *("transformers", "transformers.models.qwen3.modeling_qwen3"),
    *("vllm.entrypoints.llm", "vllm.model_executor.models.qwen3", "vllm.v1.executor.uniproc_executor", "vllm.v1.worker.cpu_worker"),
    *(
        *(f"rlkit.assembly.{name}" for name in ("build", "dry_run", "experts", "offline", "plan", "raw_settings")),
        *(f"rlkit.engines.{name}" for name in ("certificate", "classifier", "deepspeed", "hf_generate", "learners", "twin", "vllm")),
        *("rlkit.builtin.reading", "rlkit.report.picture", "rlkit.report.tensorboard", "rlkit.trainers.loop"),
    ),
)


class Fork:
    """A process of the server's. Its exit code is that of subprocess: negative for a signal."""

    def __init__(self, server: Path, program: str, arguments: list[str], env: dict[str, str], cwd: Path | None, out: int, err: int) -> None:
        """`program`: a file, or a module as in "-m rlkit.run"; `out`, `err`: descriptors of its streams."""
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(str(server))
        start = {"program": program, "arguments": arguments, "env": env, "cwd": str(cwd or Path.cwd())}
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        socket.send_fds(self._connection, [json.dumps(start).encode()], [out, err])

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it has not ended by then."""
        if self.returncode is None:
            self._connection.settimeout(max(seconds, 0.01))
            with contextlib.suppress(TimeoutError):
                answer = self._connection.recv(64)
                assert answer, "the fork server is gone"
                self.returncode = int(answer)
        return self.returncode

    def kill(self) -> None:
        """Ends the process and its group, if they are there still."""
        if self.returncode is None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)  # by which the server knows
            self.wait(10.0)
        self._connection.close()


def connect(folder: Path, owner: int) -> Path:
    """The socket of the one server of all pytest workers that share the folder; starts it where there is none. It ends with `owner`."""
    place = folder / "fork.sock"
    with (folder / "fork.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with (folder / "fork.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, __file__, str(place), str(owner)],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            until = time.monotonic() + START_SECONDS
            while not place.exists():
                assert process.poll() is None and time.monotonic() < until, (folder / "fork.log").read_text()
                time.sleep(0.05)
    return place


def serve(place: Path, owner: int) -> None:
    """Forks until the process `owner` is gone."""
    preload()
    gc.collect()
    gc.freeze()  # what is imported here is never collected in a fork: its collections would take a second each, and copy the memory
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new = place.with_suffix(".new")
    listener.bind(str(new))
    listener.listen(64)
    new.rename(place)  # connectable as soon as it has its name
    watch = selectors.DefaultSelector()
    watch.register(listener, selectors.EVENT_READ, "listener")
    watch.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    processes: dict[socket.socket, tuple[int, int]] = {}  # connection: process id, its descriptor
    while True:
        for key, _ in watch.select():
            if key.data == "owner":
                for pid, _ in processes.values():
                    kill_group(pid)
                shutil.rmtree(place.parent)
                os._exit(0)
            if key.data == "listener":
                connection, _ = listener.accept()
                pid = start(connection, [listener, *processes])
                descriptor = os.pidfd_open(pid)
                processes[connection] = pid, descriptor
                watch.register(connection, selectors.EVENT_READ, "client")
                watch.register(descriptor, selectors.EVENT_READ, connection)
                continue
            connection = key.fileobj if key.data == "client" else key.data  # the client left, or the process ended
            if connection not in processes:
                continue  # both at once
            pid, descriptor = processes.pop(connection)
            watch.unregister(connection)
            watch.unregister(descriptor)
            os.close(descriptor)
            if key.data == "client":
                kill_group(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(OSError):
                connection.send(str(code).encode())
            connection.close()


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def preload() -> None:
    """Imports what a run imports, fills the caches of Hydra and matplotlib, and starts nothing."""
    from rlkit.runtime.library_settings import configure_libraries

    configure_libraries(offline=False)
    for name in IMPORTED:
        importlib.import_module(name)
    from rlkit.config.compose import compose_recipe
    from rlkit.report.picture import draw_report

    compose_recipe(["recipe=grpo_math"], None)
    with tempfile.TemporaryDirectory() as folder:
        draw_report(
            [{"step": step, "reward": 0.5, "eval/accuracy": 0.5, "time/update": 1.0} for step in (1, 2)], Path(folder, "report.png")
        )


def start(connection: socket.socket, others: list[socket.socket]) -> int:
    """Forks the process that the client asks for; returns its id."""
    message, (out, err), _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
    asked: dict[str, Any] = json.loads(message)
    if pid := os.fork():
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # here too, so that a kill right after finds the group
        os.close(out)
        os.close(err)
        return pid
    try:
        os.setpgid(0, 0)
        for other in others:
            other.close()
        connection.close()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
        code = become(asked)
    except BaseException:  # noqa: BLE001  the parent's loop must never be reached from here
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(asked: dict[str, Any]) -> int:
    """Runs the program as a new Python would; returns its exit code."""
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    program: str = asked["program"]
    module = program.removeprefix("-m ") if program.startswith("-m ") else None
    sys.path[:] = [asked["cwd"] if module else str(Path(program).parent), *filter(None, os.environ["PYTHONPATH"].split(":")), *STANDARD]
    sys.argv = [module or program, *asked["arguments"]]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "__main__")]:
        del sys.modules[name]
    try:
        if module:
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


STANDARD = [entry for entry in sys.path if entry and Path(entry) not in (ROOT, ROOT / "tests")]

if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
