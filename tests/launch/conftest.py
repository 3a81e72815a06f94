"""Hosts on one machine: Ray nodes with addresses of their own (127.0.0.2 and up), each with its own raylet, and launchers to watch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launch.worker_group import read_stat
from rlkit.report.folder import read_metrics
from rlkit.runtime.processes import list_descendants
from tests.conftest import Ended, environment, free_port
from tests.repeatable import select_repeatable

RAY = str(Path(sys.executable).with_name("ray"))
FAST = {  # a dead node is noticed within 3 s
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Host:
    """A node of Ray on this machine."""

    address: str
    folder: Path
    process: subprocess.Popen[bytes]

    def pids(self) -> list[int]:
        return [*list_descendants(self.process.pid), self.process.pid]

    def kill_raylet(self) -> None:
        (pid,) = [pid for pid in self.pids() if named(pid, "raylet/raylet")]
        os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """All processes of the node, at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def named(pid: int, word: str) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return False


@dataclass
class Hosts:
    """A Ray cluster of several hosts; the first is the head."""

    folder: Path
    env: dict[str, str]
    port: int
    network: str
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{next(iter(self.hosts))}:{self.port}"

    def add(self, number: int, *flags: str, cpus: int = 1, prefix: Sequence[str] = (), **more: str) -> Host:
        """Starts host `number` of the network; waits until it belongs to the cluster."""
        address = f"{self.network}.{number}"
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{number}-"))
        head = ["--head", f"--port={self.port}", "--include-dashboard=false"] if not self.hosts else [f"--address={self.address}"]
        words = [RAY, "start", *head, f"--node-ip-address={address}", f"--num-cpus={cpus}", "--num-gpus=0", "--block"]
        words += ["--object-store-memory=80000000", "--disable-usage-stats", *([f"--temp-dir={folder}"]), *flags]
        env = {k: v for k, v in self.env.items() if k != "PYTHONPATH"} | FAST | more  # the launcher's comes along with the ranks
        log = (folder / "start.log").open("wb")
        process = subprocess.Popen([*prefix, *words], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        host = self.hosts[address] = Host(address, folder, process)
        until(lambda: b"Ray runtime started" in (folder / "start.log").read_bytes(), 60, lambda: (folder / "start.log").read_text())
        return host

    def of(self, pid: int) -> Host:
        """The host on which a process runs."""
        return next(host for host in self.hosts.values() if pid in host.pids())

    def revive(self, host: Host) -> None:
        """Starts a host again, after what is left of it was killed."""
        self.hosts.pop(host.address).kill()
        self.add(int(host.address.rpartition(".")[2]))

    def end(self) -> None:
        for host in reversed(self.hosts.values()):
            host.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def until(condition: Callable[[], Any], seconds: float, told: Callable[[], str] = lambda: "") -> Any:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {told()}"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def hosts(*numbers: int, network: str = "127.0.0") -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="rl-hosts-"))  # short: a socket's path has at most 107 characters
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    asks = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    made = Hosts(folder, environment(OMP_NUM_THREADS="1", **asks), free_port(), network)
    try:
        for number in numbers:
            made.add(number)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Hosts]:
    with hosts(2, 3) as made:
        yield made


@dataclass
class Launch:
    """A launcher under way."""

    process: subprocess.Popen[bytes]
    folder: Path

    def ranks(self) -> list[int]:
        """Process ids of the ranks, wherever they run, in their order."""
        found = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            if named(int(entry), str(self.folder)) and named(int(entry), "-m rlkit.run"):
                with contextlib.suppress(OSError, KeyError):
                    pairs = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                    seen = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
                    found[int(seen[b"RANK"])] = int(entry)
        return [found[rank] for rank in sorted(found)]

    def step(self) -> int:
        """The last that was reported."""
        with contextlib.suppress(OSError):
            return max((row["step"] for row in map(json.loads, whole_lines(self.folder / "metrics.jsonl"))), default=-1)
        return -1

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """What the condition gives as soon as it is true; the launcher must not end before."""
        try:
            return until(lambda: condition() or (self.process.poll() is not None and pytest.fail("ended")), seconds)
        except BaseException:
            self.process.kill()
            print(*self.said(), sep="\n")
            raise

    def ended(self, seconds: float = 240) -> Ended:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("\n".join([f"the launcher did not end in {seconds:g} s", *self.said()])) from None
        return Ended(self.process.returncode, *self.said())

    def said(self) -> tuple[str, str]:
        out, err = (told_in(self.folder, stream).read_text() for stream in ("out", "err"))
        return out, err


def told_in(folder: Path, stream: str) -> Path:
    """The output of a launcher. Without a reader a pipe is full after 64 KiB, and the launcher would wait."""
    return folder.with_name(f"{folder.name}.{stream}")


def whole_lines(path: Path) -> list[str]:
    return path.read_text().rpartition("\n")[0].splitlines()


def launcher(kind: str, *words: str, folder: Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Launch:
    """Starts `python -m launch.KIND` in a working directory of its own, which identifies the processes that it leaves behind."""
    place = folder.with_name(f"{folder.name}.cwd")
    place.mkdir(parents=True, exist_ok=True)
    with told_in(folder, "out").open("w") as out, told_in(folder, "err").open("w") as err:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", f"launch.{kind}", *words, f"output_dir={folder}"],
            env=environment(OMP_NUM_THREADS="1") if env is None else env,
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            cwd=place,
        )
    return Launch(process, folder)


@dataclass
class Halt:
    """Makes a rank wait as a phase begins or some seconds after, so that it can be struck there; tests/programs/halting does it."""

    file: Path
    _stopped: int | None = None  # process id of a rank that stopped itself

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        program = Path(__file__).resolve().parents[1] / "programs" / "halting"
        return env | {"PYTHONPATH": f"{program}:{env['PYTHONPATH']}", "RLKIT_HALT": str(self.file)}

    def at(self, phase: str, count: int, rank: int, seconds: float = 0.0) -> Halt:
        """Of ranks that start from now on."""
        self.file.write_text(f"{phase} {count} {rank} {seconds}")
        return self

    def reached(self, launch: Launch) -> int:
        """The process id of the rank, once it waits. Nobody halts after this until `at` is called again."""
        halted = self.file.with_suffix(".halted")
        pid, how = launch.until(lambda: halted.exists() and halted.read_text()).split()
        self._stopped = int(pid) if how == "stopped" else None
        self.file.unlink()
        return int(pid)

    def release(self) -> None:
        self.file.with_suffix(".halted").unlink(missing_ok=True)
        if self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped, signal.SIGCONT)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run that two equal runs share."""
    return [select_repeatable(row) for row in read_metrics(folder / "metrics.jsonl")]


def left_behind(folder: Path) -> list[str]:
    """Living processes of a launched run. Ray ends its own process of an actor beside the launcher, so these have 5 s to go."""
    until = time.monotonic() + 5.0
    while (found := list_processes(folder)) and all(words.startswith("ray::") for words in found) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def list_processes(folder: Path) -> list[str]:
    """The command lines of living processes that know the folder, or stand where the run was started; reward workers do."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        place = Path("/proc", entry)
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            stands = str((place / "cwd").readlink()) == str(folder.with_name(f"{folder.name}.cwd"))
            if (str(folder) in words or stands) and read_stat(int(entry))[0] != "Z" and int(entry) != os.getpid():
                found.append(words)
    return found


def restarts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "restarts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def on_two(small: list[str]) -> list[str]:
    """The small recipe on two nodes."""
    return [*small, "rewarding.workers=1", "nodes=2"]


@pytest.fixture(scope="session")
def undisturbed(on_two: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that nothing happened to, on this machine without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = launcher("local", *on_two, "nodes=1", "workers_per_node=2", folder=folder).ended()
    assert ended.code == 0, ended.err
    assert left_behind(folder) == []
    return folder
