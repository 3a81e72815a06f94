"""Watching over a run: attempts, restarts, stops. The same story on one machine and on many.

A fleet is where the ranks are: it starts them, is polled, and ends them. An attempt ends when all ranks have ended, when one died, when a
node is lost, or when nobody made progress for `watchdog_minutes`. What died is started again from the last checkpoint; a mistake of the
user's (exit code 2) and a stop (75) are not.
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
SETTLE_SECONDS = 1.5  # after a rank's death, for others to end: the first to be seen is not always the one that began it
NOT_AT_WORK = ("starting", "loading")
RESTARTS = "restarts.jsonl"
STOPPED = {EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT}  # the last two: asked before they listened


class Lost(Exception):
    """A node cannot be reached any more; the message says which."""


class Fleet(Protocol):
    """Where the ranks are."""

    def start(self, first: bool) -> str:
        """Starts all ranks; says how many, and where. `first`: not a restart. Raises Lost, UserError or RunFailed."""

    def poll(self) -> list[dict[str, Any]]:
        """What each node says (WorkerGroup.poll). Raises Lost."""

    def signal(self, number: int) -> None: ...

    def stacks(self) -> None: ...

    def end(self) -> None:
        """Ends all ranks. Raises nothing: a node that is gone has none."""

    def note(self, name: str, line: str) -> None:
        """Appends a line to a file of the run's folder."""


class Signals:
    """SIGTERM, SIGUSR1, Ctrl-C and a closed terminal, remembered."""

    def __init__(self) -> None:
        self.asked = 0
        self._interrupts = 0

    def install(self) -> None:
        install_handler(self._struck)

    @property
    def at_once(self) -> bool:
        return self._interrupts > 1

    def _struck(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        self._interrupts += number == signal.SIGINT


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: an exit code, and the cause where it is not 0 or 75."""

    code: int
    cause: str = ""


@dataclass
class Watch:
    """One run, from its first attempt to its last."""

    fleet: Fleet
    settings: LaunchSection
    signals: Signals
    _said: set[str] = field(default_factory=set)  # error lines of this attempt
    _restart: dict[str, Any] | None = None  # under way
    _heard: float = 0.0  # when work was last seen
    _lost_at: float = 0.0  # when the last attempt ended

    def run(self) -> int:
        """Attempts until the run is done or stopped; the exit code. Raises RunFailed where it cannot go on."""
        self._heard = time.monotonic()
        for left in range(self.settings.max_restarts, -1, -1):
            ended = self._attempt(first=left == self.settings.max_restarts)
            if ended.code != EXIT_FAILED:
                return ended.code
            if self.signals.asked or left == 0:
                break
            say(f"{ended.cause}; starting again from the last checkpoint ({left - 1} restarts left after this one)")
            self._restart = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "cause": ended.cause}
        raise RunFailed(
            f"{ended.cause}; what each rank said is in ranks/ of the run's folder, and the same command with output_dir= of it goes on"
        )

    def _attempt(self, first: bool) -> Ended:
        if self.signals.asked:
            return Ended(EXIT_STOPPED)
        self._said.clear()
        try:
            where = self.fleet.start(first)
            if self._restart is not None:
                self._restart["on"] = where
            return self._watched()
        except Lost as lost:
            return Ended(EXIT_FAILED, str(lost))
        except Stopped:
            return Ended(EXIT_STOPPED)
        finally:
            self._noted()  # of a restart that came to nothing
            self._lost_at = self._heard
            self.fleet.end()

    def _watched(self) -> Ended:
        told = False
        while True:
            nodes = self.fleet.poll()
            self._heard = time.monotonic()
            self._show(nodes)
            ranks = [{**rank, "node": node["node"]} for node in nodes for rank in node["ranks"]]
            if self._restart and all(rank["phase"] not in NOT_AT_WORK for rank in ranks):
                say(f"at work again after {self._noted():.0f} s")
            if failed(ranks) and not settled(ranks):
                time.sleep(SETTLE_SECONDS)
                continue
            if ended := verdict(ranks, bool(self.signals.asked)):
                return ended
            if self.signals.at_once:
                return Ended(EXIT_STOPPED)
            if self.signals.asked and not told:
                self.fleet.signal(signal.SIGTERM)
                told = True
            if hung := silent(ranks, self.settings.watchdog_minutes * 60):
                self._heard -= self.settings.watchdog_minutes * 60
                self.fleet.stacks()
                return Ended(EXIT_FAILED, hung)
            time.sleep(POLL_SECONDS)

    def _show(self, nodes: list[dict[str, Any]]) -> None:
        """Rank 0's output as it is; what the others complain of once, with their names."""
        for node in nodes:
            for rank, error, text in node["lines"]:
                if not error:
                    out(text, sys.stdout)
                elif text.strip() not in self._said:
                    self._said.add(text.strip())
                    out(text if rank == 0 else f"[rank {rank} on {node['node']}] {text}", sys.stderr)

    def _noted(self) -> float:
        """The restart that was under way is over: a line in restarts.jsonl. How long the run was down, in seconds."""
        down = round(time.monotonic() - self._lost_at, 1)
        if self._restart is not None:
            self.fleet.note(RESTARTS, json.dumps({**self._restart, "downtime_seconds": down}))
        self._restart = None
        return down


def failed(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rank for rank in ranks if rank["code"] not in (None, EXIT_DONE, EXIT_STOPPED)]


def settled(ranks: list[dict[str, Any]]) -> bool:
    return all(rank["code"] is not None for rank in ranks) or max(rank["ended"] for rank in failed(ranks)) >= SETTLE_SECONDS


def verdict(ranks: list[dict[str, Any]], asked: bool) -> Ended | None:
    """How the attempt ended, None where it goes on. A mistake of the user's, or a stop asked for, outweighs what it did to others."""
    codes = [rank["code"] for rank in ranks]
    if EXIT_USER in codes:
        return Ended(EXIT_USER)
    if asked and None not in codes and not STOPPED.isdisjoint(codes):
        return Ended(EXIT_STOPPED)
    if broken := failed(ranks):
        return Ended(EXIT_FAILED, told(min(broken, key=lambda rank: (rank["code"] > 0, -rank["ended"]))))
    if None in codes:
        return None
    return Ended(EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE)


def told(rank: dict[str, Any]) -> str:
    code = rank["code"]
    how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    return f"rank {rank['rank']} on {rank['node']} {how} in phase {rank['phase']} of step {rank['step']}"


def silent(ranks: list[dict[str, Any]], limit: float) -> str | None:
    """Where nobody got anything done for `limit` seconds: who is stopped, or has been quiet the longest. The others wait for it."""
    going = [rank for rank in ranks if rank["code"] is None]
    if not going or min(rank["quiet"] for rank in going) < limit:
        return None
    first = max(going, key=lambda rank: (rank["stopped"], rank["quiet"]))
    what = "stopped by a signal" if first["stopped"] else "quiet the longest"
    return (
        f"no progress for {limit / 60:g} minutes (launch.watchdog_minutes); {what}: rank {first['rank']} on {first['node']}, "
        f"in phase {first['phase']} of step {first['step']}; the stacks of all ranks are in ranks/*.stacks"
    )


def ranks_on(count: int, nodes: Sequence[str]) -> str:
    """'2 ranks on A, B'."""
    return f"{count} rank{'s' if count > 1 else ''} on {', '.join(nodes)}"


def say(text: str) -> None:
    out(f"rlkit: {text}", sys.stderr)


def out(text: str, stream: TextIO) -> None:
    """A line; where the reader is gone (`| head`, a closed terminal) it goes nowhere from then on, and the run goes on."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
