"""The ranks of one node: plain processes of `python -m rlkit.run`, started, listened to, and ended with all that they started.

Standard library only: launch.ray sends this module to its nodes as it is here.

Each rank's output goes into a file of its own, ranks/rank-N.log of the run's folder; what rank 0 says, and what any rank says on its
stderr, is handed on. A rank is killed when this process ends, however it ends (PR_SET_PDEATHSIG of prctl(2)), and its reward workers
end with it.
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

STACKS_SIGNAL = signal.SIGUSR2  # as in rlkit.runtime.heartbeat
STACKS_SECONDS = 2.0  # for the stacks to be written
END_SECONDS = 3.0  # for what a killed rank started to end by itself
MOST_LINES = 2000  # kept for a reader that does not come; the files have them all
# PDEATHSIG belongs to the process that execs, so a moment of Python stands between: no code of ours runs between fork and exec.
GUARD = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.getppid()==int(sys.argv[1]) or os._exit(1);os.execv(sys.argv[2],sys.argv[2:])"


class Rank:
    """One process, its log and what it last said of itself."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], log: IO[bytes], pipe: int) -> None:
        self.number, self.process, self.log, self.pipe = number, process, log, pipe
        self.step, self.phase = 0, "starting"
        self.heard = time.monotonic()
        self.ended: float | None = None

    def said(self, beat: bytes) -> None:
        step, _, phase = beat.decode(errors="replace").rstrip("\n").rpartition("\n")[2].partition(" ")
        self.step, self.phase, self.heard = int(step), phase, time.monotonic()

    def state(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "rank": self.number,
            "pid": self.process.pid,
            "code": self.process.returncode,
            "step": self.step,
            "phase": self.phase,
            "quiet": now - self.heard,
            "stopped": process_state(self.process.pid)[0] in "Tt",
            "ended": None if self.ended is None else now - self.ended,
        }


class WorkerGroup:
    """Starts in a thread of its own, which outlives the ranks: PDEATHSIG means the thread that forked.

    environments: of each rank of this node, by its number. folder: the run's. lease: seconds without a poll after which it ends them.
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
        self._over = threading.Event()
        self._trouble: BaseException | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        if self._trouble:
            raise self._trouble

    def poll(self) -> dict[str, Any]:
        """The states of the ranks, and the lines said since the last poll: (rank, on stderr?, text)."""
        self._polled = time.monotonic()
        with self._lock:
            lines, self._lines = self._lines, []
            return {"node": self._node, "ranks": [rank.state() for rank in self._ranks], "lines": lines}

    def signal(self, number: int) -> None:
        for rank in self._living():
            with contextlib.suppress(ProcessLookupError):
                rank.process.send_signal(number)

    def stacks(self) -> None:
        """Where each rank is, into ranks/rank-N.stacks."""
        for rank in self._living():
            state = process_state(rank.process.pid)
            now, quiet = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic() - rank.heard
            with (self._folder / f"rank-{rank.number}.stacks").open("a") as file:
                file.write(
                    f"\n--- {now}  rank {rank.number} on {self._node}, process {rank.process.pid}: phase {rank.phase} of step {rank.step}, "
                    f"no sign for {quiet:.0f} s; the system says {state}\n"
                )
                if state[0] in "Tt":
                    file.write(
                        "it is stopped (SIGSTOP or a debugger), so that it writes no stacks itself; py-spy, where installed, reads them\n"
                    )
                file.flush()
                self._spied(rank.process.pid, file)
            rank.process.send_signal(STACKS_SIGNAL)
        time.sleep(STACKS_SECONDS)

    def end(self) -> None:
        """Kills the ranks and whatever they started; returns when none of it is left."""
        living = self._living()
        tree = [(pid, born(pid)) for rank in living for pid in [*descendants(rank.process.pid), rank.process.pid]]
        for rank in living:
            rank.process.kill()
        until = time.monotonic() + END_SECONDS
        while any(alive(pid, birth) for pid, birth in tree) and time.monotonic() < until:
            time.sleep(0.02)  # a reward supervisor ends its own workers, Python's resource tracker unlinks shared memory
        for pid, birth in tree:
            if alive(pid, birth):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def _living(self) -> list[Rank]:
        with self._lock:
            return [rank for rank in self._ranks if rank.process.returncode is None]

    def _spied(self, pid: int, file: IO[str]) -> None:
        if spy := shutil.which("py-spy"):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([spy, "dump", "--nonblocking", "--pid", str(pid)], stdout=file, stderr=file, timeout=10, check=False)

    # -- the thread that forks and listens --

    def _run(self, started: threading.Event) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for number, environment in self._environments.items():
                    self._ranks.append(self._start(number, environment, selector))
            except BaseException as error:  # noqa: BLE001 - told to whoever waits for the start
                self._trouble = error
                self._over.set()
                for rank in self._ranks:
                    rank.process.kill()
            started.set()
            while not self._over.is_set():
                self._listen(selector, 0.1)
                self._look()
            self._listen(selector, 0.0)
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
        reads, writes = os.pipe()
        out, its_out = os.pipe()
        err, its_err = os.pipe()
        whole = {**environment, "RLKIT_HEARTBEAT": str(writes), "RLKIT_STACKS": str(self._folder / f"rank-{number}.stacks")}
        words = [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid()), *self._command]
        # A process group of its own: Ctrl-C in the terminal is ours to pass on, once.
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=its_out, stderr=its_err, env=whole, pass_fds=[writes], process_group=0
        )
        for ours in (writes, its_out, its_err):
            os.close(ours)
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"--- {moment}  rank {number} on {self._node}, process {process.pid}\n".encode())
        rank = Rank(number, process, log, reads)
        for handle, kind in ((reads, "beat"), (out, "out"), (err, "err")):
            os.set_blocking(handle, False)
            selector.register(handle, selectors.EVENT_READ, (rank, kind, bytearray()))
        return rank

    def _listen(self, selector: selectors.BaseSelector, seconds: float) -> None:
        for key, _ in selector.select(seconds):
            rank, kind, begun = key.data
            try:
                read = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not read:
                selector.unregister(key.fd)
                os.close(key.fd)
            begun += read
            end = begun.rfind(b"\n") + 1 if read else len(begun)
            whole = bytes(begun[:end])
            del begun[:end]
            if not whole:
                continue
            with self._lock:
                if kind == "beat":
                    rank.said(whole)
                else:
                    self._heard(rank, kind == "err", whole)

    def _heard(self, rank: Rank, error: bool, whole: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk ends the run in the rank's own words, not here
            rank.log.write(whole)
            rank.log.flush()
        if error or rank.number == 0:
            self._lines += [(rank.number, error, text) for text in whole.decode(errors="replace").splitlines()]
            del self._lines[:-MOST_LINES]

    def _look(self) -> None:
        """Who ended, and whether anybody still asks."""
        with self._lock:
            for rank in self._ranks:
                if rank.process.returncode is None and rank.process.poll() is not None:
                    rank.ended = time.monotonic()
        if self._lease and time.monotonic() - self._polled > self._lease:
            self.end()


# -- processes, from /proc ----------------------------------------------------------------------------------------------------------


def stat(pid: int) -> list[str]:
    """The fields after the name in /proc/PID/stat, from the state on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_state(pid: int) -> str:
    """'T (stopped)' and the like."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return "gone"


def born(pid: int) -> str:
    """When a process started: a pid alone may be given anew."""
    fields = stat(pid)
    return fields[19] if fields else ""


def alive(pid: int, birth: str) -> bool:
    fields = stat(pid)
    return bool(fields) and fields[19] == birth and fields[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """Every process under `pid`, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


# -- the environment of a rank ------------------------------------------------------------------------------------------------------


def environments(base: Mapping[str, str], first: int, local: int, world: int, address: str, port: int) -> dict[int, dict[str, str]]:
    """Of the `local` ranks from number `first` on: what torchrun would set, and for each its share of the cores."""
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // local))}
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return {first + n: {**threads, **base, **shared, "RANK": str(first + n), "LOCAL_RANK": str(n)} for n in range(local)}


def free_port(address: str, wanted: int | None = None) -> int:
    """A port at which nobody listens on this node; OSError where the wanted one is taken."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        if wanted:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", wanted or 0))
        port: int = probe.getsockname()[1]
        return port
