"""The trainer's side of rewards: give it samples as they finish, ask for verdicts when they are needed.

    with RewardClient(specs, settings, replay_folder) as judge:          # returns at once; workers import the reward files meanwhile
        judge.submit(key, item, group, group_size)                # item: prompt, completion, and the columns of the data row
        verdicts = judge.collect(keys)                            # blocks until all of them are judged

The functions run in worker processes under a supervisor process (supervisor.py); nothing of them runs or is imported here. Verdicts
depend on the samples alone, not on the order of arrival or the number of workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from rlkit.errors import RunFailed, UserError
from rlkit.metrics import Metrics
from rlkit.rewarding import combining
from rlkit.rewarding.failures import FailureWindow, write_replay
from rlkit.rewarding.outcome import LUMP, Outcome, Verdict, quick
from rlkit.rewarding.spec import Kind, RewardSettings, RewardSpec, locate

# Without these ordinary programs do not work; everything else a reward needs is listed in rewarding.env.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # what offline=true sets holds for rewards too
FIXED_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # the GPU is the trainer's
    "HIP_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",  # the order of a set, and so what a reward makes of it, is the same in every worker
    "OMP_NUM_THREADS": "1",  # workers are many; threads of each would fight with the trainer's
}
SUPERVISE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from rlkit.rewarding import supervisor; supervisor.main({}, {})"
CLOSE_SECONDS = 20.0
Seat = Callable[[Sequence[Mapping[str, Any]]], Sequence[Outcome]]


class RewardClient:
    """Rewards as a service: see the module. replay_folder is where samples that failed are written when the run stops for them.

    here: names of rewards that are not for workers; `seats` gets a function for each of them, which is given samples in this process when
    they are collected.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        settings: RewardSettings | None = None,
        replay_folder: Path | None = None,
        here: Collection[str] = (),
    ) -> None:
        settings = settings or RewardSettings()
        self._specs, self._settings = tuple(specs), settings
        self._sent = tuple(spec for spec in specs if spec.name not in here)  # to the workers
        self.in_process: dict[str, Seat] = {}
        self._replay_folder = replay_folder or Path("replay")
        _check(self._specs, settings)
        self._kinds: list[Kind] | None = None  # of each reward of the workers; None until they are ready
        self._items: dict[Hashable, Mapping[str, Any]] = {}
        self._groups: dict[Hashable, Hashable] = {}
        self._early: list[tuple[Hashable, Hashable | None, int | None]] = []  # not handed out yet
        self._members: dict[Hashable, list[Hashable]] = defaultdict(list)  # groups that are not complete yet
        self._units: dict[int, tuple[int, list[Hashable]]] = {}  # under way: unit -> (reward index, keys)
        self._quick = False  # the last that were judged
        self._told: dict[Hashable, dict[str, Outcome]] = {}
        self._windows = {spec.name: FailureWindow(settings.max_failure_rate) for spec in self._specs}
        self._unreported: dict[str, list[Outcome]] = {spec.name: [] for spec in self._specs}
        self._count = 0
        self._supervisor, self._connection = _start_supervisor(settings.env)
        self._connection.send((self._sent, settings))

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the workers have imported the reward files. Raises UserError where that cannot be done."""
        while self._kinds is None:
            self._listen(None)

    def ignored(self, columns: Collection[str]) -> list[str]:
        """A line for each reward that does not get some of these columns of the data, since its settings have their names. Once ready."""
        assert self._kinds is not None
        found = [(spec, sorted(kind.settings & set(columns))) for spec, kind in zip(self._sent, self._kinds, strict=True)]
        return [
            f"rewards.{spec.name} ({spec.path}) does not get the data's columns {', '.join(names)}: parameters of these names "
            f"are settings, which only rewards.{spec.name}.args sets (see rewards/README.md)"
            for spec, names in found
            if names
        ]

    def submit(self, key: Hashable, item: Mapping[str, Any], group: Hashable | None = None, group_size: int | None = None) -> None:
        """Have a finished sample judged: at once, or where that takes next to no time, with the next that finish, at the latest in collect.
        Functions that take groups get theirs when group_size of it are here.

        item: `prompt` (text or messages), `completion` (text), the columns of the data row, and where known `completion_length` (tokens)
        and `stop`. key names the sample; samples of one group are handed over in the order of their keys.
        """
        if key in self._items:
            raise ValueError(f"sample {key!r} was submitted already")
        self._items[key] = item
        self._groups[key] = group if group is not None else ("alone", key)
        self._told[key] = {}
        self._early.append((key, group, group_size))
        if not self._quick or len(self._early) >= LUMP:
            self._advance()

    def done(self, keys: Iterable[Hashable]) -> bool:
        """Whether collect(keys) would return at once. Never waits."""
        self._advance()
        return self._kinds is not None and all(len(self._told[key]) == len(self._specs) for key in keys)

    def collect(self, keys: Sequence[Hashable]) -> dict[Hashable, Verdict]:
        """Verdicts of these samples, in their order; forgets them. Waits for those that are not judged yet.

        Raises UserError where a reward's failures pass max_failure_rate.
        """
        verdicts = self.judged(keys)
        for spec in self._specs:
            self._watch(spec, [(key, verdict.parts[spec.name]) for key, verdict in verdicts.items()])
        for key in keys:
            del self._items[key], self._groups[key], self._told[key]
        return verdicts

    def judged(self, keys: Sequence[Hashable]) -> dict[Hashable, Verdict]:
        """Verdicts as collect gives them, without forgetting the samples or stopping for their failures."""
        self.ready()
        self._advance()
        self._ask([unit for group in dict.fromkeys(self._groups[key] for key in keys) for unit in self._of_group(group)])
        self._ask_seats(keys)
        for key in keys:
            while len(self._told[key]) < len(self._specs):
                self._listen(None)
        parts = {key: {spec.name: self._told[key][spec.name] for spec in self._specs} for key in keys}
        return combining.verdicts(self._specs, self._settings, parts, self._groups)

    def stats(self) -> Metrics:
        """Failure rates and latencies of the samples collected since the last call, by metric name."""
        numbers = combining.stats(self._specs, self._unreported)
        self._unreported = {spec.name: [] for spec in self._specs}
        return numbers

    def state(self) -> dict[str, str]:
        """What the failure limit remembers, by reward: for the checkpoint."""
        return {name: window.state() for name, window in self._windows.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Go on from state(); rewards that it does not know start afresh."""
        for name, window in self._windows.items():
            window.restore(state.get(name, ""))

    def close(self) -> None:
        """End the supervisor, the workers and every process they started."""
        if not self._connection.closed:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as end, contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # closing alone would not do where a fork of this process holds a copy
            self._connection.close()
        try:
            self._supervisor.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # its workers die with it
            self._supervisor.wait()

    def _advance(self) -> None:
        """Take what has arrived and hand out what can be; never waits."""
        while self._connection_open() and self._connection.poll():
            self._listen(0.0)
        if self._kinds is None:
            return
        early, self._early = self._early, []
        units: list[tuple[int, list[Hashable]]] = []  # (reward index, keys)
        for key, group, group_size in early:
            units += [(index, [key]) for index, kind in enumerate(self._kinds) if not kind.batch]
            if any(kind.batch for kind in self._kinds):
                place = self._groups[key]
                self._members[place].append(key)
                if group is None or len(self._members[place]) == group_size:
                    units += self._of_group(place)
        self._ask(units)

    def _of_group(self, group: Hashable) -> list[tuple[int, list[Hashable]]]:
        assert self._kinds is not None
        keys = _in_order(self._members.pop(group, []))
        return [(index, keys) for index, kind in enumerate(self._kinds) if kind.batch and keys]

    def _ask_seats(self, keys: Sequence[Hashable]) -> None:
        """The rewards of this process, on all samples that they have not seen; the workers go on meanwhile."""
        for spec in self._specs:
            if spec in self._sent:
                continue
            asked = [key for key in keys if spec.name not in self._told[key]]  # none is asked too: other ranks may have some
            for key, outcome in zip(asked, self.in_process[spec.name]([self._items[key] for key in asked]), strict=True):
                self._told[key][spec.name] = outcome

    def _ask(self, units: Sequence[tuple[int, list[Hashable]]]) -> None:
        if not units:
            return
        numbered = dict(enumerate(units, self._count + 1))
        message = [(number, index, [_pickled(key, self._items[key]) for key in keys]) for number, (index, keys) in numbered.items()]
        self._units |= numbered
        self._count += len(units)
        try:
            self._connection.send(message)
        except OSError:
            while True:  # it may have said why before it went; _listen raises that, or that it is gone
                self._listen(None)

    def _listen(self, timeout: float | None) -> None:
        try:
            if not self._connection.poll(timeout):
                return
            message = self._connection.recv()
        except (EOFError, OSError):
            self._lost()
        match message:
            case ("ready", kinds):
                self._kinds = kinds
                self._advance()
            case ("broken", trouble):
                raise UserError(trouble)
            case ("crashed", trace):
                raise RunFailed(f"the reward supervisor stopped on a fault of its own; the run can be resumed\n{trace}")
            case ("told", units):
                self._quick = all(quick(outcomes) for _, outcomes in units)
                for unit, outcomes in units:
                    index, keys = self._units.pop(unit)
                    for key, outcome in zip(keys, outcomes, strict=True):
                        self._told[key][self._sent[index].name] = outcome

    def _watch(self, spec: RewardSpec, outcomes: Sequence[tuple[Hashable, Outcome]]) -> None:
        self._unreported[spec.name] += [outcome for _, outcome in outcomes]
        window = self._windows[spec.name]
        window.add([outcome.kind.failed for _, outcome in outcomes])
        if not window.exceeded():
            return
        key, outcome = next((key, outcome) for key, outcome in outcomes if outcome.kind.failed)
        group = [self._items[other] for other in _in_order([k for k in self._items if self._groups[k] == self._groups[key]])]
        assert self._kinds is not None
        batch = spec in self._sent and self._kinds[self._sent.index(spec)].batch
        file = write_replay(self._replay_folder, spec, self._settings, group if batch else [self._items[key]], key, outcome)
        raise UserError(window.message(spec, key, self._items[key], outcome, file))

    def _connection_open(self) -> bool:
        return not self._connection.closed

    def _lost(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(1.0)
        raise RunFailed(
            f"the reward supervisor (process {self._supervisor.pid}) is gone, exit status {self._supervisor.returncode}: "
            "killed from outside, or the machine ran out of memory (see dmesg); the run can be resumed"
        )


def _check(specs: Sequence[RewardSpec], settings: RewardSettings) -> None:
    if not specs:
        raise UserError("rewards: a run needs at least one reward, for example rewards.accuracy.path=accuracy")
    for spec in specs:
        locate(spec.path)
    if settings.combine == "gate" and not any(spec.gate for spec in specs):
        names = ", ".join(spec.name for spec in specs)
        raise UserError(f"rewarding.combine=gate needs a gate: set rewards.<name>.gate=true for one of {names}")


def _start_supervisor(names: Sequence[str]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    environment = {name: os.environ[name] for name in (*ENVIRONMENT, *OFFLINE, *names) if name in os.environ} | FIXED_ENVIRONMENT
    with theirs:
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE.format(theirs.fileno(), os.getpid()), json.dumps(_import_path())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is the trainer's business alone
        )
    return supervisor, Connection(ours.detach())


def _import_path() -> list[str]:
    here = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([os.path.abspath(entry) for entry in sys.path] + [here]))


def _pickled(key: Hashable, item: Mapping[str, Any]) -> bytes:
    try:
        return pickle.dumps(dict(item), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever a column's own __reduce__ raises
        raise UserError(
            f"sample {key!r}: its columns cannot be sent to a reward worker ({error}); keep plain values in the data"
        ) from error


def _in_order(keys: list[Hashable]) -> list[Hashable]:
    try:
        return sorted(keys)  # type: ignore[type-var]
    except TypeError:
        return sorted(keys, key=repr)
