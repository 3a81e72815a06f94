"""Reward functions that misbehave, one way each, where the completion says so; every other sample is scored by its length."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any


def score(completion: str, **columns: Any) -> Any:
    if completion in FAULTS:
        return FAULTS[completion]()
    return float(len(completion))


def group(completions: list[str], **columns: Any) -> Any:
    if "short list" in completions:
        return [1.0]
    if "a string" in completions:
        return "1" * len(completions)
    return [float(len(completion)) for completion in completions]


def _hang() -> None:
    while True:
        pass


def _hang_in_c() -> None:
    ctypes.CDLL(None).pause()


def _hang_deaf_to_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    _hang()


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _overflow_the_stack() -> int:
    sys.setrecursionlimit(10**9)
    return _recurse()


def _allocate() -> int:
    return len(bytearray(100 * 2**30))


def _fork_a_hundred() -> float:
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    return 1.0


def _fork_and_come_back() -> float:
    for _ in range(5):
        os.fork()
    return 1.0


def _double_fork() -> float:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        os._exit(0)
    os.wait()
    return 1.0


def _leave_a_process() -> float:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    return 1.0


def _leave_then_die() -> None:
    _leave_a_process()
    os.kill(os.getpid(), signal.SIGKILL)


def _raise_in_a_thread() -> float:
    thread = threading.Thread(target=_divide_by_zero)
    thread.start()
    return 1.0


def _divide_by_zero() -> float:
    return 1 / 0


def _kill_a_moment_later() -> float:
    threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return 1.0


def _close_everything() -> float:
    os.closerange(0, 4096)
    return 1.0


def _print_megabytes() -> float:
    for _ in range(100):
        print("x" * 100_000)
        os.write(2, b"y" * 100_000)
    return 1.0


FAULTS = {
    "hang": _hang,
    "hang in c": _hang_in_c,
    "hang deaf": _hang_deaf_to_signals,
    "sleep": lambda: time.sleep(600),
    "exit": lambda: sys.exit(3),
    "hard exit": lambda: os._exit(7),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "recurse": _recurse,
    "overflow": _overflow_the_stack,
    "allocate": _allocate,
    "fork 100": _fork_a_hundred,
    "fork back": _fork_and_come_back,
    "double fork": _double_fork,
    "leave": _leave_a_process,
    "leave, die": _leave_then_die,
    "thread": _raise_in_a_thread,
    "kill later": _kill_a_moment_later,
    "close all": _close_everything,
    "print": _print_megabytes,
    "nan": lambda: float("nan"),
    "inf": lambda: float("-inf"),
    "string": lambda: "good",
    "list": lambda: [1.0],
    "bad dict": lambda: {"value": 1.0},
    "none": lambda: None,
    "raise": _divide_by_zero,
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
}
