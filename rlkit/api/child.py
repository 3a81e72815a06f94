"""A run in a child process, which is the same door as `python -m rlkit.run`, and the errors that its exit codes stand for.

    stdin     JSON, once: the import path, the rewards that take the place of the recipe's, and the functions that no file holds
    stdout    what a person reads, stderr too: shown in the caller's sys.stdout, which in a notebook is no file
    a pipe    lines of JSON: the folder of the run, and the message of the error that ended it

The child has a session of its own: Ctrl-C reaches the caller alone, which passes it on once. The child stops, saved, when its caller ends.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rlkit.api.words import build_words
from rlkit.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, RunFailed, Stopped, UserError
from rlkit.rewarding.processes import die_with_parent
from rlkit.rewarding.python_functions import Parameters, PythonFunction, register_functions

CHILD = "import json, sys; start = json.load(sys.stdin); sys.path[:] = start['path']; from rlkit.api import child; child.serve(start)"
PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # among processes that the child is not of
END_SECONDS = 60.0  # to save a checkpoint, where the caller goes on without waiting for the run
CHUNK = 1 << 16
Rewards = Mapping[str, Mapping[str, Any]]


def run_child(words: list[str], rewards: Rewards | None, functions: Mapping[str, PythonFunction], action: str = "train") -> Path | None:
    """Runs the door with these words, and rewards in place of the recipe's; returns the folder of the run, if it has one.

    action: train, or evaluate: the words of `rlkit eval`.

    Raises UserError, Stopped and RunFailed as the run does, and KeyboardInterrupt where it was interrupted before it handled that.
    """
    child = _Child(words, _encode_start(rewards, functions, action))
    try:
        interrupts = child.wait()
    finally:
        child.close()
    events: dict[str, str] = {}
    for line in child.read_events().splitlines():
        events |= json.loads(line)
    code, message = child.process.returncode, events.get("message", "").removeprefix("rlkit: ")
    if code == EXIT_DONE:
        return Path(events["folder"]) if "folder" in events else None
    if code == EXIT_STOPPED:
        raise Stopped(message or "stopped; the run goes on from its last checkpoint, with output_dir= of its folder")
    if interrupts:
        raise KeyboardInterrupt
    if code == EXIT_USER:
        raise UserError(message)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = " (the machine may have run out of memory: see dmesg)" if code == -signal.SIGKILL else ""
    raise RunFailed(message or f"the run {how}{why}; see its output")


class _Child:
    """The child process, and what it printed on its way to the caller."""

    def __init__(self, words: list[str], start: bytes) -> None:
        self._events, theirs = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(theirs), str(os.getpid()), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                env={name: value for name, value in os.environ.items() if name not in PLACE} | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        self._ended = os.pidfd_open(self.process.pid)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""  # the beginning of one
        os.set_blocking(self._output, False)
        os.set_blocking(self._events, False)
        with suppress(BrokenPipeError), self.process.stdin as stdin:  # one that ended at once has printed why
            stdin.write(start)

    def wait(self) -> int:
        """Shows the output until the process has ended; returns how often it was interrupted."""
        interrupts = 0
        while True:
            try:
                self._show_output()
                return interrupts
            except KeyboardInterrupt:
                interrupts += 1
                # the second ends the process at once; it may not get so far
                self.process.send_signal(signal.SIGINT if interrupts < 3 else signal.SIGKILL)
                if interrupts == 1:
                    print("rlkit: stopping, the run saves a checkpoint; interrupt again to end it at once", flush=True)

    def close(self) -> None:
        """Ends the process where it still runs, since showing its output failed."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
            self.process.kill()
            self.process.wait()
        os.close(self._ended)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def read_events(self) -> bytes:
        """What the ended process wrote into the pipe."""
        with os.fdopen(self._events, "rb") as events:
            return events.read() or b""

    def _show_output(self) -> None:
        watched = [self._output, self._ended]
        while self.process.poll() is None:
            wait(watched)
            if not self._show_available():
                watched = [self._ended]
        self._show_available()
        self._show(self._line + self._decoder.decode(b"", final=True))
        self._line = ""

    def _show_available(self) -> bool:
        """Shows the whole lines of what the pipe holds; returns whether more can come."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._output, CHUNK):
                lines, newline, self._line = (self._line + self._decoder.decode(chunk)).rpartition("\n")
                self._show(lines + newline)
            return False
        return True

    def _show(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


def _encode_start(rewards: Rewards | None, functions: Mapping[str, PythonFunction], action: str) -> bytes:
    sent = {
        path: {
            "pickled": base64.b64encode(function.pickled).decode(),
            "names": sorted(function.parameters.names),
            "required": sorted(function.parameters.required),
        }
        for path, function in functions.items()
    }
    here = str(Path(__file__).resolve().parents[2])
    path = list(dict.fromkeys([*map(os.path.abspath, sys.path), here]))
    replaced = None if rewards is None else {name: build_words({"rewards": {name: keys}}) for name, keys in rewards.items()}
    return json.dumps({"path": path, "rewards": replaced, "functions": sent, "action": action}).encode()


def serve(start: Mapping[str, Any]) -> None:
    """The child's side; does not return. start: what _encode_start wrote."""
    from rlkit import run
    from rlkit.runtime.library_settings import configure_libraries

    events, parent, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(events, False)
    die_with_parent(parent, signal.SIGTERM)
    sys.argv = [f"rlkit.{start['action']}", *words]
    sys.stdin = open(os.devnull)  # noqa: SIM115  for the life of the process
    configure_libraries(offline=False)
    for path, sent in start["functions"].items():
        parameters = Parameters(frozenset(sent["names"]), frozenset(sent["required"]))
        register_functions({path: PythonFunction(base64.b64decode(sent["pickled"]), parameters)})

    def report(kind: str, text: str) -> None:
        os.write(events, (json.dumps({kind: text}) + "\n").encode())

    def act() -> int:
        if start["action"] == "evaluate":
            report("folder", evaluate_words(words))
            return EXIT_DONE
        replaced = replace_rewards(words, start["rewards"])
        return run.dispatch(replaced, started=lambda folder: report("folder", str(folder)))

    run.end_process_with(lambda: run.handle_errors(act, words, show=lambda message: report("message", message)))


def evaluate_words(words: list[str]) -> str:
    """Runs `rlkit eval` with these words; returns its folder."""
    from rlkit.cli.evaluate import describe_result, evaluate_source

    name, *keys = words
    result = evaluate_source(name, keys, note=lambda text: print(text, flush=True))
    print(describe_result(result), flush=True)
    return result.folder


def replace_rewards(words: list[str], rewards: Mapping[str, list[str]] | None) -> list[str]:
    """The words with those of other rewards, and without the rewards that the recipe has. rewards: the words of each, by its name."""
    from rlkit.config.compose import compose_config
    from rlkit.run import parse_arguments

    if rewards is None:
        return words
    _, overrides, folder = parse_arguments(words)
    before = compose_config([word for word in overrides if not word.startswith("rewards.")], folder)["rewards"]
    removed = [f"~rewards.{name}" for name in before or {}]
    return [*removed, *(word for own in rewards.values() for word in own), *words]  # words last: they win
