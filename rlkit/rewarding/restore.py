"""Puts a worker back in order after each call, so that no call of a reward function changes what the next one finds.

What calls may not change is restored: trace and profile functions, signal handlers, timers, the signal mask, the working directory, the
umask, streams, limits, the decimal context, and the names in the modules that a worker itself relies on. What calls may leave is counted:
threads, child processes, open files and environment variables are how clients and pools work, as long as their number stops growing.

Left out: objects that are changed in place (sys.path, an entry of a list), which lazy imports do for good reasons.
"""

from __future__ import annotations

import builtins
import copyreg
import decimal
import faulthandler
import gc
import json
import math
import os
import pickle
import random
import resource
import signal
import socket
import sys
import threading
import time
from multiprocessing import connection, reduction
from types import ModuleType

from rlkit.rewarding import calling, forms, outcome, processes, scores

MODULES: tuple[ModuleType, ...] = (
    *(builtins, sys, os, time, random, math, decimal, signal, threading, resource, gc),
    *(pickle, copyreg, json, json.encoder, json.decoder, connection, reduction),
    *(calling, forms, outcome, processes, scores),
)
CLASSES = (json.JSONEncoder, json.JSONDecoder, pickle._Pickler, pickle._Unpickler, reduction.ForkingPickler, connection.Connection)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
LIMITS = (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_STACK, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
TRIES = 3  # a trace or signal function of the call may raise in here, once each
FIRST_CALLS = 32  # of each reward: clients and pools are made in them
SLACK = 32  # what may be added after the first calls: a pool of threads makes them one by one
MOST = {"threads": 512, "child processes": 128, "open files": 512, "environment variables": 1000}  # that the first calls may add


class WorkerState:
    """The state of this process that calls may not change, as it is when this object is made."""

    def __init__(self) -> None:
        self._namespaces = {module.__name__: (vars(module), dict(vars(module))) for module in MODULES}
        self._classes = [(kind, dict(vars(kind))) for kind in CLASSES]
        self._modules = dict(sys.modules)
        self._get_handler = sys.modules["_signal"].getsignal  # that of `signal` makes an enum of each handler, which is slow
        self._handlers = {number: self._get_handler(number) for number in signal.valid_signals()}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._folder = os.open(".", os.O_PATH | os.O_DIRECTORY)  # also where it is removed meanwhile
        self._null = os.open(os.devnull, os.O_RDWR)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._limits = {which: resource.getrlimit(which) for which in LIMITS}
        self._recursion, self._digits, self._switch = sys.getrecursionlimit(), sys.get_int_max_str_digits(), sys.getswitchinterval()
        self._socket_timeout = socket.getdefaulttimeout()
        self._decimal = decimal.getcontext().copy()

    def restore(self) -> bool:
        """Undo what the call changed. False where that is not possible: the worker must be replaced."""
        for _ in range(TRIES):
            try:
                sys.settrace(None)  # first: a trace function would run in all that follows
                sys.setprofile(None)
                self._restore_names()
                self._restore_process()
                return True
            except BaseException:  # noqa: BLE001 - of a trace, profile or signal function of the call, which is gone after it
                continue
        return False

    def _restore_names(self) -> None:
        for namespace, before in self._namespaces.values():
            namespace.update(before)  # builtins first: nothing before this line may use one
        sys.modules.update({name: self._modules[name] for name in self._modules.keys() - sys.modules.keys()})
        sys.modules.update({module.__name__: module for module in MODULES})
        for kind, attributes in self._classes:
            current = vars(kind)
            for name, value in attributes.items():
                if current.get(name) is not value:
                    type.__setattr__(kind, name, value)
        threading.settrace(None)
        threading.setprofile(None)
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name).closed:
                self._namespaces["sys"][1][name] = stream = open(os.devnull, "r" if name == "stdin" else "w")  # noqa: SIM115 - for all calls
                setattr(sys, name, stream)

    def _restore_process(self) -> None:
        for timer in TIMERS:
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in self._handlers.items():
            if handler is not None and self._get_handler(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.fchdir(self._folder)
        for descriptor in (0, 1, 2):
            os.dup2(self._null, descriptor)
        os.umask(self._umask)
        for which, limit in self._limits.items():
            if resource.getrlimit(which) != limit:
                resource.setrlimit(which, limit)
        sys.setrecursionlimit(self._recursion)
        sys.set_int_max_str_digits(self._digits)
        sys.setswitchinterval(self._switch)
        socket.setdefaulttimeout(self._socket_timeout)
        decimal.setcontext(self._decimal.copy())
        gc.enable()


class GrowthCheck:
    """Whether what calls leave behind stops growing after the first calls of each reward."""

    def __init__(self) -> None:
        self._start = count_leftovers()
        self._allowed = dict(self._start)
        self._calls: dict[str, int] = {}

    def find_growth(self, reward: str) -> str:
        """After a call: what there is too much of, in words; empty where all is well."""
        self._calls[reward] = calls = self._calls.get(reward, 0) + 1
        for what, count in count_leftovers().items():
            if calls <= FIRST_CALLS:
                self._allowed[what] = max(self._allowed[what], min(count, self._start[what] + MOST[what]))
            if count > self._allowed[what] + SLACK:
                return f"{count - self._start[what]} {what} after {calls} calls"
        return ""


def count_leftovers() -> dict[str, int]:
    """The threads, child processes, open files and environment variables of this process."""
    children = _count_children() if processes.has_children() else 0
    threads = os.stat("/proc/self/task").st_nlink - 2  # a folder for each thread, those of C code too
    return {"threads": threads, "child processes": children, "open files": _count_files(), "environment variables": len(os.environ)}


def _count_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # no file can be opened any more
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _count_children() -> int:
    """Direct children only: what a child starts is its own, and what detaches itself is ended by the supervisor."""
    found = 0
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                found += len(file.read().split())
        except OSError:  # the thread has ended
            continue
    return found
