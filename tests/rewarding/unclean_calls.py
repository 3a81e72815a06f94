"""Reward calls that leave something behind in their process, or end it, by the name of what they do."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import contextlib
import ctypes
import decimal
import faulthandler
import gc
import json
import mmap
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from rlkit.rewarding import scores

KEPT: list[Any] = []  # what calls keep
SHARED_BYTES = 700 * 2**20


def _after(*actions: Callable[[], Any]) -> Callable[[], float]:
    """Does these things, then gives a score."""

    def call() -> float:
        for action in actions:
            action()
        return 1.0

    return call


def _spin() -> None:
    while True:
        pass


def _fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("left behind by an earlier call")


def _trace_frames_of_the_worker() -> float:
    sys.settrace(_fail)
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame.f_trace, frame = _fail, frame.f_back
    return 1.0


def _trace_in_silence(*_: Any) -> Any:
    return None


def _raise_at_a_later_moment() -> None:
    signal.signal(signal.SIGALRM, _fail)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.001)


def _stand_in_a_removed_folder() -> None:
    os.chdir(folder := tempfile.mkdtemp())
    os.rmdir(folder)


def _write_output_to_a_file() -> None:
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _patch_everything() -> None:
    """Each of them breaks the worker if it stays."""
    pickle.loads = pickle.dumps = json.dumps = json.loads = random.seed = scores.parse_scores = _fail  # type: ignore[assignment]
    time.monotonic = time.perf_counter = os.getpid = os.fchdir = threading.enumerate = _fail  # type: ignore[assignment]
    ForkingPickler.dumps = json.JSONEncoder.default = _fail  # type: ignore[method-assign, assignment]
    sys.modules["json"] = sys.modules["pickle"] = None  # type: ignore[assignment]


def _patch_builtins() -> None:
    for name in ("len", "float", "isinstance", "set", "max", "getattr", "dict", "OSError"):
        setattr(builtins, name, _fail)


def _remove_builtins() -> None:
    for name in ("len", "float", "isinstance", "set", "print"):
        delattr(builtins, name)


def _limit_files(hard: bool) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64 if hard else resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _use_up_files() -> float:
    with contextlib.suppress(OSError):
        while len(KEPT) < 5000:
            KEPT.append(open(os.devnull))  # noqa: SIM115
    return 1.0


def _start_threads(count: int, target: Callable[[], Any]) -> float:
    for _ in range(count):
        threading.Thread(target=target, daemon=True).start()
    return 1.0


def _raise_in_a_thread_later() -> float:
    threading.Timer(0.1, _fail).start()
    return 1.0


def _leave_zombies() -> float:
    for _ in range(20):
        if os.fork() == 0:
            os._exit(0)
    return 1.0


def _fill_shared_memory(seconds: float) -> float:
    shared = mmap.mmap(-1, SHARED_BYTES)
    KEPT.append(shared)
    for start in range(0, SHARED_BYTES, 2**20):
        shared[start : start + 2**20] = bytes(1) * 2**20
    time.sleep(seconds)
    return 1.0


def _fill_shared_memory_in_a_child() -> float:
    if os.fork() == 0:
        _fill_shared_memory(600)
    return 1.0


def _keep_memory() -> float:
    KEPT.append(bytearray(3 * 2**27))  # 384 MiB: the next of its kind does not fit
    return 1.0


def _kill_the_other_workers() -> float:
    parent = os.getppid()
    for child in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{child}/stat") as file:
                _, _, rest = file.read().rpartition(")")
            with open(f"/proc/{child}/cmdline") as file:
                is_worker = "spawn_main" in file.read()
            if int(rest.split()[1]) == parent and is_worker and int(child) != os.getpid():
                os.kill(int(child), signal.SIGKILL)
    return 1.0


UNCLEAN: dict[str, Callable[[], Any]] = {
    "trace": _after(lambda: sys.settrace(_trace_in_silence)),
    "trace that raises": _after(lambda: sys.settrace(_fail)),
    "trace of frames": _trace_frames_of_the_worker,
    "profile": _after(lambda: sys.setprofile(_trace_in_silence)),
    "profile that raises": _after(lambda: sys.setprofile(_fail)),
    "trace of threads": _after(lambda: threading.settrace(_fail), lambda: threading.setprofile(_fail)),
    "later signal": _after(_raise_at_a_later_moment),
    "alarm": _after(lambda: signal.alarm(1)),
    "profiling timer": _after(lambda: signal.setitimer(signal.ITIMER_PROF, 0.01)),
    "handlers": _after(lambda: [signal.signal(which, _fail) for which in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]),
    "blocked signals": _after(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))),
    "exit later": _after(lambda: faulthandler.dump_traceback_later(0.1, exit=True)),
    "folder": _after(lambda: os.chdir("/")),
    "removed folder": _after(_stand_in_a_removed_folder),
    "umask": _after(lambda: os.umask(0o777)),
    "no streams": _after(lambda: setattr(sys, "stdout", None), lambda: setattr(sys, "stderr", None)),
    "closed streams": _after(lambda: sys.stdout.close(), lambda: sys.stderr.close()),
    "closed output": _after(lambda: os.close(1), lambda: os.close(2)),
    "output to a file": _after(_write_output_to_a_file),
    "recursion limit": _after(lambda: sys.setrecursionlimit(10**8)),
    "low recursion limit": _after(lambda: sys.setrecursionlimit(80)),
    "patch": _after(_patch_everything),
    "patch builtins": _after(_patch_builtins),
    "no builtins": _after(_remove_builtins),
    "no modules": _after(lambda: sys.modules.clear()),
    "no garbage collection": _after(gc.disable),
    "short decimals": _after(lambda: setattr(decimal.getcontext(), "prec", 2)),
    "short integers": _after(lambda: sys.set_int_max_str_digits(640)),
    "few files": _after(lambda: _limit_files(hard=False)),
    "few files for ever": _after(lambda: _limit_files(hard=True)),
    "all files": _use_up_files,
    "environment": _after(lambda: os.environ.update({f"RLKIT_TEST_{n}": "x" for n in range(500)})),
    "threads": lambda: _start_threads(20, lambda: time.sleep(600)),
    "busy thread": lambda: _start_threads(1, _spin),
    "later thread": _raise_in_a_thread_later,
    "zombies": _leave_zombies,
    "shared memory": lambda: _fill_shared_memory(600),
    "shared memory of a child": _fill_shared_memory_in_a_child,
    "kept memory": _keep_memory,
    "at exit": _after(lambda: atexit.register(_spin)),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segfault": lambda: ctypes.string_at(0),
    "other program": lambda: os.execv(shutil.which("true") or "/bin/true", ["true"]),
    "own group": lambda: os.killpg(0, signal.SIGKILL),
    "other workers": _kill_the_other_workers,
    "pattern": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
    "large power": lambda: 9**9**9,
    "deadlock": lambda: [lock.acquire() for lock in [threading.Lock()] * 2],
    "own loop": _after(lambda: asyncio.run(asyncio.sleep(0))),
    "deep json": lambda: json.loads("[" * 100_000),
}
