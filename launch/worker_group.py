"""The ranks of one node: starts plain processes of `python -m rlkit.run`, reads their output, and ends them with all their children.

Standard library only: launch.ray sends this module, and rlkit.runtime.processes, to its nodes by value.

The output of each rank goes to ranks/rank-N.log in the folder of the run. The output of rank 0, and the stderr of every rank, is also
passed on. A rank is killed when this process ends, in whatever way (PR_SET_PDEATHSIG of prctl(2)), and its reward workers end with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rlkit.runtime.processes import list_descendants

STACKS_SIGNAL = signal.SIGUSR2  # as in rlkit.runtime.heartbeat
STACKS_SECONDS = 2.0  # for ranks to write their stacks
END_SECONDS = 3.0  # for the children of a killed rank to end by themselves
MAX_LINES = 2000  # kept until the next poll; the log files have them all
# PDEATHSIG must be set in the process that calls exec, so a short Python program does it: no code runs between fork and exec.
GUARD = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.getppid()==int(sys.argv[1]) or os._exit(1);os.execv(sys.argv[2],sys.argv[2:])"


class Rank:
    """One process, its log and its last heartbeat."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], log: IO[bytes], pipe: int) -> None:
        self.number, self.process, self.log, self.pipe = number, process, log, pipe
        self.step, self.phase = 0, "starting"
        self.last_heartbeat = time.monotonic()
        self.ended: float | None = None

    def record_heartbeat(self, beat: bytes) -> None:
        step, _, phase = beat.decode(errors="replace").rstrip("\n").rpartition("\n")[2].partition(" ")
        self.step, self.phase, self.last_heartbeat = int(step), phase, time.monotonic()

    def describe(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "rank": self.number,
            "pid": self.process.pid,
            "code": self.process.returncode,
            "step": self.step,
            "phase": self.phase,
            "quiet": now - self.last_heartbeat,
            "stopped": read_process_state(self.process.pid)[0] in "Tt",
            "ended": None if self.ended is None else now - self.ended,
        }


class WorkerGroup:
    """The ranks of this node. They are started by a thread that outlives them, because PDEATHSIG refers to the thread that forked.

    environments: of each rank of this node, by its number. folder: of the run. lease: after so many seconds without a poll it ends them.
    Raises what the start of a process raises.
    """

    def __init__(
        self, node: str, command: Sequence[str], environments: Mapping[int, Mapping[str, str]], folder: Path, lease: float | None = None
    ) -> None:
        self._node, self._command, self._environments, self._lease = node, command, environments, lease
        self._folder = folder / "ranks"
        self._ranks: list[Rank] = []
        self._lines: list[tuple[int, bool, str]] = []
        self._lock = threading.Lock()
        self._polled = time.monotonic()
        self._stop = threading.Event()
        self._start_error: BaseException | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        if self._start_error:
            raise self._start_error

    def poll(self) -> dict[str, Any]:
        """The states of the ranks, and the lines of output since the last poll: (rank, is stderr, text)."""
        self._polled = time.monotonic()
        with self._lock:
            lines, self._lines = self._lines, []
            return {"node": self._node, "ranks": [rank.describe() for rank in self._ranks], "lines": lines}

    def signal(self, number: int) -> None:
        """Sends a signal to all ranks."""
        for rank in self._list_alive():
            with contextlib.suppress(ProcessLookupError):
                rank.process.send_signal(number)

    def dump_stacks(self) -> None:
        """Writes the phase and the stacks of each rank to ranks/rank-N.stacks."""
        for rank in self._list_alive():
            state = read_process_state(rank.process.pid)
            now, quiet = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic() - rank.last_heartbeat
            with (self._folder / f"rank-{rank.number}.stacks").open("a") as file:
                file.write(
                    f"\n--- {now}  rank {rank.number} on {self._node}, process {rank.process.pid}: phase {rank.phase} of step {rank.step}, "
                    f"no heartbeat for {quiet:.0f} s; process state {state}\n"
                )
                if state[0] in "Tt":
                    file.write(
                        "it is stopped (SIGSTOP or a debugger) and cannot write its own stacks; py-spy reads them where it is installed\n"
                    )
                file.flush()
                self._dump_with_pyspy(rank.process.pid, file)
            rank.process.send_signal(STACKS_SIGNAL)
        time.sleep(STACKS_SECONDS)

    def end(self) -> None:
        """Kills the ranks and all their descendants; returns when none is left."""
        alive = self._list_alive()
        tree = [(pid, read_start_time(pid)) for rank in alive for pid in [*list_descendants(rank.process.pid), rank.process.pid]]
        for rank in alive:
            rank.process.kill()
        until = time.monotonic() + END_SECONDS
        while any(is_alive(pid, start) for pid, start in tree) and time.monotonic() < until:
            time.sleep(0.02)  # a reward supervisor ends its own workers, Python's resource tracker unlinks shared memory
        for pid, start in tree:
            if is_alive(pid, start):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def _list_alive(self) -> list[Rank]:
        with self._lock:
            return [rank for rank in self._ranks if rank.process.returncode is None]

    def _dump_with_pyspy(self, pid: int, file: IO[str]) -> None:
        if spy := shutil.which("py-spy"):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([spy, "dump", "--nonblocking", "--pid", str(pid)], stdout=file, stderr=file, timeout=10, check=False)

    # -- the thread that starts ranks and reads their output --

    def _run(self, started: threading.Event) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for number, environment in self._environments.items():
                    self._ranks.append(self._start(number, environment, selector))
            except BaseException as error:  # noqa: BLE001 - raised again by the constructor
                self._start_error = error
                self._stop.set()
                for rank in self._ranks:
                    rank.process.kill()
            started.set()
            while not self._stop.is_set():
                self._read_output(selector, 0.1)
                self._check_ranks()
            self._read_output(selector, 0.0)
            for key in list(selector.get_map().values()):
                os.close(key.fd)
        for rank in self._ranks:
            rank.process.wait()
            rank.log.close()
            stacks = self._folder / f"rank-{rank.number}.stacks"
            if stacks.is_file() and not stacks.stat().st_size:
                stacks.unlink()

    def _start(self, number: int, environment: Mapping[str, str], selector: selectors.BaseSelector) -> Rank:
        log = (self._folder / f"rank-{number}.log").open("ab")
        beat_read, beat_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        variables = {**environment, "RLKIT_HEARTBEAT": str(beat_write), "RLKIT_STACKS": str(self._folder / f"rank-{number}.stacks")}
        command = [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid()), *self._command]
        # A process group of its own: this launcher forwards Ctrl-C, once.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out_write, stderr=err_write, env=variables, pass_fds=[beat_write], process_group=0
        )
        for handle in (beat_write, out_write, err_write):
            os.close(handle)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"--- {now}  rank {number} on {self._node}, process {process.pid}\n".encode())
        rank = Rank(number, process, log, beat_read)
        for handle, kind in ((beat_read, "beat"), (out_read, "out"), (err_read, "err")):
            os.set_blocking(handle, False)
            selector.register(handle, selectors.EVENT_READ, (rank, kind, bytearray()))
        return rank

    def _read_output(self, selector: selectors.BaseSelector, seconds: float) -> None:
        for key, _ in selector.select(seconds):
            rank, kind, buffer = key.data
            try:
                read = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not read:
                selector.unregister(key.fd)
                os.close(key.fd)
            buffer += read
            end = buffer.rfind(b"\n") + 1 if read else len(buffer)
            complete = bytes(buffer[:end])
            del buffer[:end]
            if not complete:
                continue
            with self._lock:
                if kind == "beat":
                    rank.record_heartbeat(complete)
                else:
                    self._pass_on(rank, kind == "err", complete)

    def _pass_on(self, rank: Rank, error: bool, lines: bytes) -> None:
        with contextlib.suppress(OSError):  # on a full disk the rank itself fails, with a better message
            rank.log.write(lines)
            rank.log.flush()
        if error or rank.number == 0:
            self._lines += [(rank.number, error, text) for text in lines.decode(errors="replace").splitlines()]
            del self._lines[:-MAX_LINES]

    def _check_ranks(self) -> None:
        """Notes which ranks ended, and ends all where the lease is over."""
        with self._lock:
            for rank in self._ranks:
                if rank.process.returncode is None and rank.process.poll() is not None:
                    rank.ended = time.monotonic()
        if self._lease and time.monotonic() - self._polled > self._lease:
            self.end()


# -- processes, from /proc ----------------------------------------------------------------------------------------------------------


def read_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def read_process_state(pid: int) -> str:
    """The state of a process, such as 'T (stopped)'; 'gone' where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return "gone"


def read_start_time(pid: int) -> str:
    """The start time of a process, in ticks. A pid alone does not identify it: the system reuses pids."""
    fields = read_stat(pid)
    return fields[19] if fields else ""


def is_alive(pid: int, start: str) -> bool:
    fields = read_stat(pid)
    return bool(fields) and fields[19] == start and fields[0] not in "ZX"


# -- the environment of a rank ------------------------------------------------------------------------------------------------------


def build_environments(base: Mapping[str, str], first: int, local: int, world: int, address: str, port: int) -> dict[int, dict[str, str]]:
    """By rank, the environments of `local` ranks from `first` on: the variables that torchrun sets, and a share of the cores for each."""
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // local))}
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return {first + n: {**threads, **base, **shared, "RANK": str(first + n), "LOCAL_RANK": str(n)} for n in range(local)}


def find_free_port(address: str, wanted: int | None = None) -> int:
    """A free port of this node. Raises OSError where the wanted one is in use."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        if wanted:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", wanted or 0))
        port: int = server.getsockname()[1]
        return port
