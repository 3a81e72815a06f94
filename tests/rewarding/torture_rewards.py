"""Reward functions that misbehave, one way each, where the completion says so; every other sample is scored by its length."""

from __future__ import annotations

import ctypes
import decimal
import gc
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

from rlkit.rewarding.scores import parse_scores
from tests.rewarding.odd_returns import RETURNING
from tests.rewarding.unclean_calls import UNCLEAN


def score(completion: str, **columns: Any) -> Any:
    if completion in FAULTS:
        return FAULTS[completion]()
    changed = [name for name, value in _get_state().items() if value != STATE[name]]
    assert not changed, f"an earlier call changed {changed}"
    return float(len(completion))


def group(completions: list[str], **columns: Any) -> Any:
    if "short list" in completions:
        return [1.0]
    if "a string" in completions:
        return "1" * len(completions)
    return [float(len(completion)) for completion in completions]


def _get_state() -> dict[str, Any]:
    """What a call must find as it was when this file was imported."""
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "hooks": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "handlers": [signal.getsignal(which) for which in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": [signal.getitimer(which)[0] for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        "folder": os.getcwd(),
        "umask": umask,
        "streams": [(stream is not None and not stream.closed and stream.writable()) for stream in (sys.stdout, sys.stderr)],
        "output": [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (1, 2)],
        "limits": (sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_NOFILE), gc.isenabled(), sys.get_int_max_str_digits()),
        "names": [len, float, isinstance, print, pickle.loads, pickle.dumps, json.dumps, time.monotonic, os.getpid, random.seed],
        "patched": [parse_scores, ForkingPickler.dumps, json.JSONEncoder.default, sys.modules.get("json") is json, threading.excepthook],
        "works": (pickle.loads(pickle.dumps(7)), json.loads(json.dumps({"a": [1]})), str(decimal.Decimal(1) / 3)),
    }


STATE = _get_state()


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
    **UNCLEAN,
    **RETURNING,
}
