"""Runs unknown Python code in a sandbox: no network, no files but its own folder and the system's libraries, and nothing outlives the run.

Two sandboxes do it. One is made of Linux namespaces (namespaces.py). Where the kernel or a container refuses user namespaces, the other is
made of Landlock and seccomp (landlock.py). In both, the system calls that they do not isolate are refused one by one (syscalls.py). Memory
is limited for each process, and for all of a program together by a cgroup, else by looking at them every 50 ms (tree_usage.py). Where the
kernel allows neither, nothing is run.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from rlkit.rewarding import kernel, syscalls
from rlkit.rewarding.landlock import remove_folder
from rlkit.rewarding.tree_usage import POLL_SECONDS, MemoryGroup, TreeLimits, find_group_parent, is_over

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
SETUP_SECONDS = 30.0  # to set up the sandbox: the kernel may still be removing the networks of earlier runs
REQUEST_BYTES, DIGITS = 60_000, 9  # of a session's request, and of the length in front of an answer
HOST = "import sys; sys.path.insert(0, {!r}); from rlkit.rewarding.sandbox_host import run_programs; run_programs(eval(sys.argv[1]))"
ROOT = str(Path(__file__).resolve().parents[2])
ALLOW = (
    "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; "
    "in Docker --security-opt seccomp=unconfined), or boot a kernel from 5.13 with Landlock (lsm=...,landlock) and let the container use "
    "it (Docker from 23.0), or leave this reward out"
)


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of a program: wall-clock and CPU seconds, MiB of memory, MiB of files, processes at a time, MiB of output that is read."""

    seconds: float = 5.0
    memory_mib: int = 512
    disk_mib: int = 16
    processes: int = 16
    output_mib: int = 16


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended. exit_code is None where its time ran out, negative where a signal ended it."""

    exit_code: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Packages:
    """What a program can import beside Python's own: links (name -> path) in a folder of its import path; readable: what they lead to."""

    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sandbox:
    """A way to run unknown code. refused: why this kernel has no sandbox of namespaces. landlock_abi: 0 for namespaces. groups: the cgroup
    below which each run creates its own; None where none can be created."""

    kind: Literal["namespaces", "landlock"] = "namespaces"
    landlock_abi: int = 0
    refused: str = ""
    groups: Path | None = None

    def describe(self) -> str:
        """For the header of a run."""
        memory = "memory by a cgroup" if self.groups else "memory limited for each process and summed every 50 ms"
        if self.kind == "namespaces":
            return f"Linux namespaces, {memory}"
        processes = "" if self.landlock_abi >= kernel.SCOPES_SINCE else ", threads but no processes (they need Linux 6.12)"
        return f"Landlock (ABI {self.landlock_abi}) and seccomp, {memory}{processes}; no user namespaces here ({self.refused})"


class SandboxUnavailable(Exception):
    """This machine cannot set up the sandbox; nothing was run."""


@functools.cache
def choose_sandbox() -> Sandbox:
    """Namespaces where the kernel allows them, else Landlock; each run in a cgroup of its own where that works. Raises SandboxUnavailable
    where neither runs a program."""
    machine = os.uname().machine
    if machine not in syscalls.ARCHITECTURE:
        raise SandboxUnavailable(
            f"unknown code runs only on {' and '.join(syscalls.ARCHITECTURE)}, this machine is {machine}; leave this reward out"
        )
    reasons: list[str] = []
    for kind in ("namespaces", "landlock"):
        try:
            abi = kernel.find_landlock_abi() if kind == "landlock" else 0
            sandbox = Sandbox("landlock", abi, reasons[0]) if abi else Sandbox()
            run_each("", [""], SandboxLimits(seconds=SETUP_SECONDS), sandbox=sandbox)
            return _add_groups(sandbox)
        except (OSError, SandboxUnavailable) as error:
            reasons.append(str(error))
    raise SandboxUnavailable(f"this kernel does not allow the sandbox that unknown code needs ({'; '.join(reasons)}); {ALLOW}")


def _add_groups(sandbox: Sandbox) -> Sandbox:
    """With a cgroup for each run, where a program starts in one."""
    if parent := find_group_parent():
        with contextlib.suppress(OSError, SandboxUnavailable):
            with_groups = replace(sandbox, groups=parent)
            run_each("", [""], SandboxLimits(seconds=SETUP_SECONDS), sandbox=with_groups)
            return with_groups
    return sandbox


def run_python(source: str, stdin: str = "", limits: SandboxLimits | None = None, **settings: object) -> ProgramResult:
    """Run Python source in the sandbox. Raises SandboxUnavailable where the machine or its kernel does not allow one."""
    return run_each(source, [stdin], limits, **settings)[0]  # type: ignore[arg-type]


def run_each(
    source: str,
    stdins: Sequence[str],
    limits: SandboxLimits | None = None,
    packages: Packages | None = None,
    sandbox: Sandbox | None = None,
    until: float = math.inf,
) -> list[ProgramResult]:
    """Run the same source with each of these standard inputs, one after the other in one sandbox: each finds an empty folder, and no
    process of those before it. At the time `until` (time.monotonic) it ends with the results that are there. Raises SandboxUnavailable."""
    limits = limits or SandboxLimits()
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(tempfile.TemporaryFile())
        watch = _launch(stack, (source, *stdins), limits, packages, sandbox or choose_sandbox(), results)
        message = watch.wait(min(until, time.monotonic() + len(stdins) * limits.seconds + SETUP_SECONDS))
        _end(watch.host)
        found = list(_read_results(results))
    if len(found) < len(stdins) and time.monotonic() < until:
        raise SandboxUnavailable(message or "the set-up ended early")
    return found


class SessionEnded(Exception):
    """The program of a session is gone, and with it all that it held; the message is why."""


class SandboxSession:
    """A program that answers requests in a sandbox as long as it is wanted, and keeps what it holds between them.

    Each request reaches its stdin, and each answer leaves its stdout, as a line with the number of bytes and then UTF-8. Whatever the
    program writes is an answer: nothing in it is to be trusted. limits.seconds: wall-clock time of one request. cpu_seconds: of all.
    Raises SandboxUnavailable.
    """

    def __init__(self, source: str, limits: SandboxLimits, packages: Packages | None = None, cpu_seconds: float = 60.0) -> None:
        self._limits = limits
        with contextlib.ExitStack() as stack:
            self._requests, theirs_in = _open_pipe(stack, reads=False)
            self._answers, theirs_out = _open_pipe(stack, reads=True)
            os.set_blocking(self._requests.fileno(), False)
            results = stack.enter_context(tempfile.TemporaryFile())
            whole = replace(limits, seconds=cpu_seconds)
            self._watch = _launch(stack, (source, ""), whole, packages, choose_sandbox(), results, (theirs_in, theirs_out))
            ready = select.select([self._watch.status], [], [], SETUP_SECONDS)[0]
            started = self._watch.status.read(4096) if ready else b""
            if started != b".":
                raise SandboxUnavailable((started or b"the set-up ended early").decode(errors="replace"))
            self._stack = stack.pop_all()

    def ask(self, request: str) -> str:
        """The answer to a request. Raises SessionEnded where there is none in time, or the program is gone; ValueError for a request of
        more than REQUEST_BYTES."""
        content = request.encode(errors="replace")
        if len(content) > REQUEST_BYTES:
            raise ValueError(f"at most {REQUEST_BYTES} bytes, not {len(content)}")
        try:
            os.write(self._requests.fileno(), b"%d\n%b" % (len(content), content))  # no more than an empty pipe takes
        except OSError:
            self._end("it ended, or reads nothing any more")
        answer, deadline = b"", time.monotonic() + self._limits.seconds
        while (left := deadline - time.monotonic()) > 0:
            ready = select.select([self._answers, self._watch.status], [], [], min(POLL_SECONDS, left))[0]
            if self._answers in ready:
                if not (piece := os.read(self._answers.fileno(), 1 << 16)):
                    self._end("it ended")
                answer += piece
                head, newline, text = answer.partition(b"\n")
                if (newline and not head.isdigit()) or len(answer) > self._limits.output_mib << 20:
                    self._end("it wrote no answer, or one that is too long")
                if newline and len(text) >= int(head[:DIGITS]):
                    return text[: int(head[:DIGITS])].decode(errors="replace")
            elif ready:
                self._end("it ended")
            elif self._watch.is_over():
                self._end("it used more memory, files or processes than it may")
        return self._end(f"it took more than {self._limits.seconds:g} s")

    def close(self) -> None:
        """End the program and all that it started."""
        self._stack.close()

    def _end(self, why: str) -> NoReturn:
        self.close()
        raise SessionEnded(why)


def _launch(
    stack: contextlib.ExitStack,
    texts: Sequence[str],
    limits: SandboxLimits,
    packages: Packages | None,
    sandbox: Sandbox,
    results: IO[bytes],
    pipes: tuple[int, ...] = (),
) -> _Watch:
    """Start the host with the source and the standard inputs; it ends with the stack. pipes: stdin and stdout of the one program of a
    session, which are closed here."""
    inputs = [text.encode(errors="surrogatepass") for text in texts]
    program: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    program.write(b"".join(inputs))
    program.seek(0)
    tree = TreeLimits(limits.memory_mib << 20, limits.processes, limits.disk_mib << 20)
    place = stack.enter_context(_make_folder()) if sandbox.kind == "landlock" else None
    group = stack.enter_context(contextlib.closing(MemoryGroup(sandbox.groups, tree))).descriptor if sandbox.groups else None
    status, status_write = _open_pipe(stack, reads=True)
    control, control_read = _open_pipe(stack, reads=False)
    descriptors = {"status": status_write, "control": control_read, "results": results.fileno(), "group": group}
    configuration = _configure(sandbox, limits, (packages or Packages()).links) | descriptors
    configuration |= {"sizes": [len(text) for text in inputs], "place": str(place), "pipes": pipes}
    host = _start_host(program, configuration, [*(number for number in descriptors.values() if number is not None), *pipes])
    stack.callback(_end, host)
    for number in (status_write, control_read, *pipes):
        os.close(number)
    return _Watch(host, status, control, tree, 1 if sandbox.kind == "namespaces" else 0, place)


def _configure(sandbox: Sandbox, limits: SandboxLimits, links: Mapping[str, str]) -> dict[str, Any]:
    """What the host needs to know, beside its descriptors and its programs."""
    return {
        "kind": sandbox.kind,
        "abi": sandbox.landlock_abi,
        "limits": asdict(limits),
        "readable": list(dict.fromkeys([*SYSTEM_FOLDERS, os.path.realpath(sys.base_prefix)])),
        "links": dict(links),
        "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
        "filter": syscalls.build_filter(os.uname().machine, sandbox.landlock_abi).hex(),
    }


def _open_pipe(stack: contextlib.ExitStack, reads: bool) -> tuple[IO[bytes], int]:
    """Our end, and the other's."""
    read, write = os.pipe()
    ours = stack.enter_context(os.fdopen(read, "rb", 0) if reads else os.fdopen(write, "wb", 0))
    return ours, write if reads else read


def _start_host(program: IO[bytes], configuration: dict[str, Any], descriptors: list[int]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", HOST.format(ROOT), repr(configuration)]
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=program, stdout=silent, stderr=silent, pass_fds=descriptors, env={})


@dataclass
class _Watch:
    """Waits for the host to end, and has it kill a program that uses too much. own: processes under the host that are not the program's:
    the first of the namespace."""

    host: subprocess.Popen[bytes]
    status: IO[bytes]
    control: IO[bytes]
    limits: TreeLimits
    own: int
    place: Path | None

    def wait(self, deadline: float) -> str:
        """Returns why the host ended early; nothing where it did not."""
        message = b""
        while time.monotonic() < deadline:
            if select.select([self.status], [], [], POLL_SECONDS)[0]:
                piece = self.status.read(4096)
                if not piece:
                    return message.lstrip(b".").decode(errors="replace")
                message += piece
                continue
            number = len(message)  # of the program that runs: a dot for each that has started
            if number and self.is_over(number):
                with contextlib.suppress(OSError):  # it has just ended
                    self.control.write(b"%d " % number)
                    self.host.send_signal(signal.SIGUSR1)
        return "it took too long"

    def is_over(self, number: int = 1) -> bool:
        """Whether program `number` uses more memory, files or processes than it may."""
        return is_over(self.limits, self.host.pid, self.own, self.place / str(number) if self.place else None)


def _end(host: subprocess.Popen[bytes]) -> None:
    host.terminate()  # it kills what is inside; nothing where it has ended by itself
    try:
        host.wait(5.0)
    except subprocess.TimeoutExpired:
        host.kill()
        host.wait()


@contextlib.contextmanager
def _make_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="rlkit-")
    try:
        yield Path(folder)
    finally:
        remove_folder(folder)


def _read_results(file: IO[bytes]) -> Iterator[ProgramResult]:
    file.seek(0)
    while (line := file.readline()).endswith(b"\n"):
        code, *sizes = line.decode().split()
        out, err = (file.read(int(size)) for size in sizes)
        if len(err) < int(sizes[1]):
            return  # cut off: its host was ended
        yield ProgramResult(None if code == "None" else int(code), out.decode(errors="replace"), err.decode(errors="replace"))
