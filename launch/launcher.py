"""Runs the attempts of a run, restarts it and stops it, in the same way on one machine and on many.

A fleet holds the ranks: it starts, polls and ends them. An attempt ends when all ranks have ended, when one died, when a node is lost, or
when no rank made progress for `watchdog_minutes`. A failed attempt starts again from the last checkpoint. A mistake of the user (exit code
2) and a stop (75) do not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TextIO

from rlkit.config.sections import LaunchSection
from rlkit.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, RunFailed, Stopped
from rlkit.runtime.signals import install_handler

POLL_SECONDS = 0.3
SETTLE_SECONDS = 1.5  # to wait for other ranks after one died: the first that is seen is not always the cause
STARTUP_PHASES = ("starting", "loading")
RESTARTS_FILE = "restarts.jsonl"
STOPPED_CODES = {EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT}  # the last two: stopped before they had a handler


class NodeLost(Exception):
    """A node cannot be reached any more; the message names it."""


class Fleet(Protocol):
    """The ranks of a run, wherever they are."""

    def start(self, first: bool) -> str:
        """Starts all ranks and returns how many there are and where. `first`: no restart. Raises NodeLost, UserError or RunFailed."""

    def poll(self) -> list[dict[str, Any]]:
        """The state of each node, as WorkerGroup.poll returns it. Raises NodeLost."""

    def signal(self, number: int) -> None:
        """Sends a signal to all ranks."""

    def dump_stacks(self) -> None:
        """Writes the stacks of all ranks to ranks/rank-N.stacks of the run's folder."""

    def end(self) -> None:
        """Ends all ranks. Raises nothing: a node that is lost has none."""

    def append_line(self, name: str, line: str) -> None:
        """Appends a line to a file of the run's folder."""


class StopSignals:
    """Counts SIGTERM, SIGUSR1, SIGHUP (a closed terminal) and SIGINT (Ctrl-C)."""

    def __init__(self) -> None:
        self.count = 0
        self._interrupts = 0

    def install(self) -> None:
        install_handler(self._handle)

    @property
    def immediate(self) -> bool:
        """Whether Ctrl-C came twice."""
        return self._interrupts > 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._interrupts += number == signal.SIGINT


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended: its exit code, and the cause where the code is not 0 or 75."""

    code: int
    cause: str = ""


@dataclass
class Launcher:
    """One run, from its first attempt to its last."""

    fleet: Fleet
    settings: LaunchSection
    signals: StopSignals
    _errors_shown: set[str] = field(default_factory=set)  # error lines of this attempt
    _restart: dict[str, Any] | None = None  # in progress
    _last_progress: float = 0.0  # time of the last answer of the ranks
    _lost_at: float = 0.0  # when the last attempt ended

    def run(self) -> int:
        """Makes attempts until the run is done or stopped; returns the exit code. Raises RunFailed when no restart is left."""
        self._last_progress = time.monotonic()
        for left in range(self.settings.max_restarts, -1, -1):
            result = self._run_attempt(first=left == self.settings.max_restarts)
            if result.code != EXIT_FAILED:
                return result.code
            if self.signals.count or left == 0:
                break
            print_status(f"{result.cause}; starting again from the last checkpoint ({left - 1} restarts left after this one)")
            self._restart = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "cause": result.cause}
        raise RunFailed(
            f"{result.cause}; the output of each rank is in ranks/ of the run's folder, and the same command with output_dir= of that "
            "folder continues the run"
        )

    def _run_attempt(self, first: bool) -> AttemptResult:
        if self.signals.count:
            return AttemptResult(EXIT_STOPPED)
        self._errors_shown.clear()
        try:
            where = self.fleet.start(first)
            if self._restart is not None:
                self._restart["on"] = where
            return self._watch_ranks()
        except NodeLost as lost:
            return AttemptResult(EXIT_FAILED, str(lost))
        except Stopped:
            return AttemptResult(EXIT_STOPPED)
        finally:
            self._record_restart()  # one that failed before its ranks worked
            self._lost_at = self._last_progress
            self.fleet.end()

    def _watch_ranks(self) -> AttemptResult:
        signalled = False
        while True:
            nodes = self.fleet.poll()
            self._last_progress = time.monotonic()
            self._print_output(nodes)
            ranks = [{**rank, "node": node["node"]} for node in nodes for rank in node["ranks"]]
            if self._restart and all(rank["phase"] not in STARTUP_PHASES for rank in ranks):
                print_status(f"training again after {self._record_restart():.0f} s")
            if find_failed(ranks) and not is_settled(ranks):
                time.sleep(SETTLE_SECONDS)
                continue
            if result := find_result(ranks, bool(self.signals.count)):
                return result
            if self.signals.immediate:
                return AttemptResult(EXIT_STOPPED)
            if self.signals.count and not signalled:
                self.fleet.signal(signal.SIGTERM)
                signalled = True
            if hang := describe_hang(ranks, self.settings.watchdog_minutes * 60):
                self._last_progress -= self.settings.watchdog_minutes * 60
                self.fleet.dump_stacks()
                return AttemptResult(EXIT_FAILED, hang)
            time.sleep(POLL_SECONDS)

    def _print_output(self, nodes: list[dict[str, Any]]) -> None:
        """Prints the output of rank 0 as it is, and each error line of any rank once, with the name of the rank."""
        for node in nodes:
            for rank, error, text in node["lines"]:
                if not error:
                    print_line(text, sys.stdout)
                elif text.strip() not in self._errors_shown:
                    self._errors_shown.add(text.strip())
                    print_line(text if rank == 0 else f"[rank {rank} on {node['node']}] {text}", sys.stderr)

    def _record_restart(self) -> float:
        """Writes the restart in progress, if any, to restarts.jsonl. Returns the downtime in seconds."""
        down = round(time.monotonic() - self._lost_at, 1)
        if self._restart is not None:
            self.fleet.append_line(RESTARTS_FILE, json.dumps({**self._restart, "downtime_seconds": down}))
        self._restart = None
        return down


def find_failed(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ranks that ended with an error."""
    return [rank for rank in ranks if rank["code"] not in (None, EXIT_DONE, EXIT_STOPPED)]


def is_settled(ranks: list[dict[str, Any]]) -> bool:
    """Whether all ranks have ended, or a failure is old enough that its cause is known."""
    return all(rank["code"] is not None for rank in ranks) or max(rank["ended"] for rank in find_failed(ranks)) >= SETTLE_SECONDS


def find_result(ranks: list[dict[str, Any]], stopping: bool) -> AttemptResult | None:
    """How the attempt ended, None while it runs. A mistake of the user or a requested stop counts more than the failures that follow it."""
    codes = [rank["code"] for rank in ranks]
    if EXIT_USER in codes:
        return AttemptResult(EXIT_USER)
    if stopping and None not in codes and not STOPPED_CODES.isdisjoint(codes):
        return AttemptResult(EXIT_STOPPED)
    if failed := find_failed(ranks):
        return AttemptResult(EXIT_FAILED, describe_failure(min(failed, key=lambda rank: (rank["code"] > 0, -rank["ended"]))))
    if None in codes:
        return None
    return AttemptResult(EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE)


def describe_failure(rank: dict[str, Any]) -> str:
    """'rank 1 on A ended with exit code 1 in phase update of step 3'."""
    code = rank["code"]
    how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    return f"rank {rank['rank']} on {rank['node']} {how} in phase {rank['phase']} of step {rank['step']}"


def describe_hang(ranks: list[dict[str, Any]], limit: float) -> str | None:
    """Which rank is stopped or quiet the longest, where no rank made progress for `limit` seconds. The other ranks wait for it."""
    running = [rank for rank in ranks if rank["code"] is None]
    if not running or min(rank["quiet"] for rank in running) < limit:
        return None
    first = max(running, key=lambda rank: (rank["stopped"], rank["quiet"]))
    what = "stopped by a signal" if first["stopped"] else "quiet the longest"
    return (
        f"no progress for {limit / 60:g} minutes (launch.watchdog_minutes); {what}: rank {first['rank']} on {first['node']}, "
        f"in phase {first['phase']} of step {first['step']}; the stacks of all ranks are in ranks/*.stacks"
    )


def describe_ranks(count: int, nodes: Sequence[str]) -> str:
    """'2 ranks on A, B'."""
    return f"{count} rank{'s' if count > 1 else ''} on {', '.join(nodes)}"


def print_status(text: str) -> None:
    """Prints a line of the launcher itself to stderr."""
    print_line(f"rlkit: {text}", sys.stderr)


def print_line(text: str, stream: TextIO) -> None:
    """Prints a line. Where the reader is gone (`| head`, a closed terminal), it drops the output from then on and the run continues."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
