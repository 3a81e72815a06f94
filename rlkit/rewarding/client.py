"""The trainer's side of rewards: submit samples as they finish, collect their rewards when they are needed.

    with RewardClient(rewards, settings, replay_folder) as client:      # returns at once; workers import the reward files meanwhile
        client.submit(key, item, group, group_size)               # item: prompt, completion, and the columns of the data row
        sample_rewards = client.collect(keys)                     # blocks until all of them are scored

The functions run in worker processes under a supervisor process (supervisor.py); this process does not import them. The rewards depend on
the samples alone, not on the order of arrival or the number of workers.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rlkit.errors import UserError
from rlkit.metrics import Metrics
from rlkit.rewarding import combining
from rlkit.rewarding.failures import FailureWindow
from rlkit.rewarding.forms import TRAINER_NAMES
from rlkit.rewarding.job import FunctionKind, WorkerLimits
from rlkit.rewarding.outcome import MAX_CALLS_TOGETHER, Outcome, OutcomeKind, SampleReward, are_quick
from rlkit.rewarding.replay import write_replay
from rlkit.rewarding.resolve import locate_reward
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.rewarding.supervision import end_supervisor, receive_message, send_message, start_supervisor

SERVE = ("rlkit.rewarding.supervisor", "serve_trainer")
WHAT = "the reward supervisor"
InProcessReward = Callable[[Sequence[Mapping[str, Any]]], Sequence[Outcome]]


class RewardClient:
    """Scores samples in worker processes: see the module. replay_folder: where a failed sample is written when the run stops for it;
    nowhere without one.

    in_process_names: names of rewards that run in this process and not in workers. `in_process` must get a function for each of them,
    which is called with all samples when they are collected. on_request: names of rewards that score only the samples submitted for them.
    """

    def __init__(
        self,
        rewards: Mapping[str, RewardSpec],
        settings: RewardSettings,
        replay_folder: Path | None = None,
        in_process_names: Collection[str] = (),
        on_request: Collection[str] = (),
    ) -> None:
        _validate(rewards, settings, in_process_names)
        self._rewards, self._settings = dict(rewards), settings
        self._worker_names = [name for name in rewards if name not in in_process_names]
        self._common_names = frozenset(name for name in rewards if name not in on_request)
        self.in_process: dict[str, InProcessReward] = {}
        self.warn: Callable[[str], None] = lambda text: print(f"rlkit: {text}", file=sys.stderr, flush=True)
        self.steps, self.finished_steps = 0, 0  # of the run: what functions of TRL's form get as trainer_state
        self._warned: set[str] = set()  # names of rewards
        self._replay_folder = replay_folder
        self._kinds: list[FunctionKind] | None = None  # of the rewards in workers; None until the workers are ready
        self._items: dict[Hashable, Mapping[str, Any]] = {}
        self._groups: dict[Hashable, Hashable] = {}
        self._not_sent: list[tuple[Hashable, Hashable | None, int | None]] = []  # (key, group, group size)
        self._open_groups: dict[Hashable, list[Hashable]] = defaultdict(list)  # keys of groups that are not complete yet
        self._in_flight: dict[int, tuple[int, list[Hashable]]] = {}  # unit number -> (reward index, keys)
        self._quick = False  # whether the last results came quickly
        self._outcomes: dict[Hashable, dict[str, Outcome]] = {}
        self._windows = {name: FailureWindow(settings.max_failure_rate) for name in rewards}
        self._unreported: dict[str, list[Outcome]] = {name: [] for name in rewards}
        self._unit_count = 0
        self._supervisor, self._connection = start_supervisor(SERVE, settings.env)
        limits = WorkerLimits(settings.workers or os.cpu_count() or 1, settings.load_timeout, settings.memory_gib)
        self._connection.send(([rewards[name].for_worker(name, settings) for name in self._worker_names], limits))

    @property
    def counts(self) -> bool:
        """Whether the reward of a sample depends on any score."""
        return any(spec.counts for name, spec in self._rewards.items() if name in self._common_names)

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until the workers have imported the reward files. Raises UserError where they cannot."""
        while self._kinds is None:
            self._receive(None)

    def asks_for(self, name: str) -> bool:
        """Whether a reward gets this part of what only the trainer knows (TRAINER_NAMES). True as long as that is not known."""
        return self._kinds is None or any(name in kind.from_trainer for kind in self._kinds)

    def describe_ignored_columns(self, columns: Collection[str]) -> list[str]:
        """One line for each reward that does not get some of these data columns, because its settings have their names. Once ready."""
        assert self._kinds is not None
        ignored = {name: sorted(kind.settings & set(columns)) for name, kind in zip(self._worker_names, self._kinds, strict=True)}
        return [
            f"rewards.{name} ({self._rewards[name].path}) does not get the data columns {', '.join(hidden)}: parameters of these names "
            f"are settings, which only rewards.{name}.args sets (see rewards/README.md)"
            for name, hidden in ignored.items()
            if hidden
        ]

    def submit(
        self,
        key: Hashable,
        item: Mapping[str, Any],
        group: Hashable | None = None,
        group_size: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Score a finished sample. It is sent at once, or with the next ones where a score takes almost no time; at the latest in collect.
        Functions for whole groups are called when group_size samples of the group are here.

        item: `prompt` (text or messages), `completion` (text), the columns of the data row, and where known `completion_length` (tokens)
        and `stop`. key: the name of the sample; a function for groups gets its samples in the order of their keys. only: the names of the
        rewards that score it, the same for a whole group; None: all but those that run on request.
        """
        if key in self._items:
            raise ValueError(f"sample {key!r} was submitted already")
        self._items[key] = item
        self._groups[key] = group if group is not None else ("alone", key)
        asked = self._common_names if only is None else only
        self._outcomes[key] = {name: Outcome(OutcomeKind.SKIPPED) for name in self._rewards if name not in asked}
        self._not_sent.append((key, group, group_size))
        if not self._quick or len(self._not_sent) >= MAX_CALLS_TOGETHER:
            self._advance()

    def collect(self, keys: Sequence[Hashable]) -> dict[Hashable, SampleReward]:
        """The rewards of these samples, in their order; forgets the samples. Waits for those that are not scored yet.

        Raises UserError where a reward fails more often than max_failure_rate allows.
        """
        sample_rewards = self.wait(keys)
        for name in self._rewards:
            outcomes = {key: found.components[name] for key, found in sample_rewards.items()}
            self._check_failures(name, {key: own for key, own in outcomes.items() if own.kind is not OutcomeKind.SKIPPED})
        for key in keys:
            del self._items[key], self._groups[key], self._outcomes[key]
        return sample_rewards

    def wait(self, keys: Sequence[Hashable]) -> dict[Hashable, SampleReward]:
        """Like collect, but keeps the samples and does not stop for their failures."""
        self.wait_until_ready()
        self._advance()
        self._send([unit for group in dict.fromkeys(self._groups[key] for key in keys) for unit in self._close_group(group)])
        self._score_in_process(keys)
        for key in keys:
            while len(self._outcomes[key]) < len(self._rewards):
                self._receive(None)
        components = {key: {name: self._outcomes[key][name] for name in self._rewards} for key in keys}
        return combining.combine_rewards(self._rewards, self._settings, components, self._groups)

    def pop_metrics(self) -> Metrics:
        """Failure rates and latencies of the samples collected since the last call, by metric name."""
        metrics = combining.compute_metrics(self._unreported)
        self._unreported = {name: [] for name in self._rewards}
        return metrics

    def state(self) -> dict[str, str]:
        """The recent failures of each reward, for the checkpoint."""
        return {name: window.state() for name, window in self._windows.items()}

    def restore(self, state: Mapping[str, str]) -> None:
        """Continue from state(); rewards that are not in it start without failures."""
        for name, window in self._windows.items():
            window.restore(state.get(name, ""))

    def close(self) -> None:
        """End the supervisor, the workers and every process that they started."""
        end_supervisor(self._supervisor, self._connection)

    def _advance(self) -> None:
        """Receive what has arrived and send what can be sent; never waits."""
        while not self._connection.closed and self._connection.poll():
            self._receive(0.0)
        if self._kinds is None:
            return
        not_sent, self._not_sent = self._not_sent, []
        units: list[tuple[int, list[Hashable]]] = []  # (reward index, keys)
        for key, group, group_size in not_sent:
            units += [(index, [key]) for index, kind in enumerate(self._kinds) if not kind.batch and self._is_asked(index, key)]
            if any(kind.batch for kind in self._kinds):
                members = self._open_groups[self._groups[key]]
                members.append(key)
                if group is None or len(members) == group_size:
                    units += self._close_group(self._groups[key])
        self._send(units)

    def _close_group(self, group: Hashable) -> list[tuple[int, list[Hashable]]]:
        """The units (reward index, keys) of a group for the functions that take groups; empty where the group was closed before."""
        assert self._kinds is not None
        keys = _sort_keys(self._open_groups.pop(group, []))
        return [(index, keys) for index, kind in enumerate(self._kinds) if kind.batch and keys and self._is_asked(index, keys[0])]

    def _is_asked(self, index: int, key: Hashable) -> bool:
        """Whether a reward in workers is to score a sample that it has not scored."""
        return self._worker_names[index] not in self._outcomes[key]

    def _score_in_process(self, keys: Sequence[Hashable]) -> None:
        """Call the rewards of this process with all samples that they have not scored; the workers continue meanwhile."""
        for name in self._rewards:
            if name in self._worker_names:
                continue
            missing = [key for key in keys if name not in self._outcomes[key]]  # called with none too: other ranks may have some
            for key, outcome in zip(missing, self.in_process[name]([self._items[key] for key in missing]), strict=True):
                self._outcomes[key][name] = outcome

    def _send(self, units: Sequence[tuple[int, list[Hashable]]]) -> None:
        if not units:
            return
        numbered = dict(enumerate(units, self._unit_count + 1))
        message = [(number, index, [self._pickle_item(index, key) for key in keys]) for number, (index, keys) in numbered.items()]
        self._in_flight |= numbered
        self._unit_count += len(units)
        send_message(self._supervisor, self._connection, message, WHAT)

    def _select_item(self, index: int, key: Hashable) -> dict[str, Any]:
        """The item of a sample for one of the rewards in workers, which gets of what only the trainer knows what it asks for."""
        assert self._kinds is not None
        asked = self._kinds[index].from_trainer
        item = {name: value for name, value in self._items[key].items() if name not in TRAINER_NAMES or name in asked}
        state = {"trainer_state": {"global_step": self.finished_steps, "max_steps": self.steps}}
        return item | (state if "trainer_state" in asked else {})

    def _pickle_item(self, index: int, key: Hashable) -> bytes:
        try:
            return pickle.dumps(self._select_item(index, key), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever the __reduce__ of a column raises
            raise UserError(
                f"sample {key!r}: its columns cannot be sent to a reward worker ({error}); use plain values in the data"
            ) from error

    def _receive(self, timeout: float | None) -> None:
        if timeout is not None and not self._connection.poll(timeout):
            return
        match receive_message(self._supervisor, self._connection, WHAT):
            case ("ready", kinds):
                self._kinds = kinds
                self._advance()
            case ("replaced", index, growth):
                self._warn_of_growth(self._worker_names[index], growth)
            case ("scored", units):
                self._quick = all(are_quick(outcomes) for _, outcomes in units)
                for unit, outcomes in units:
                    index, keys = self._in_flight.pop(unit)
                    for key, outcome in zip(keys, outcomes, strict=True):
                        self._outcomes[key][self._worker_names[index]] = outcome

    def _check_failures(self, name: str, outcomes: Mapping[Hashable, Outcome]) -> None:
        self._unreported[name] += outcomes.values()
        window = self._windows[name]
        window.add([outcome.kind.failed for outcome in outcomes.values()])
        if not window.is_over_limit():
            return
        key, outcome = next((key, outcome) for key, outcome in outcomes.items() if outcome.kind.failed)
        assert self._kinds is not None
        reward = self._rewards[name].for_worker(name, self._settings)
        items = [self._items[key]]
        if name in self._worker_names:
            index = self._worker_names.index(name)
            group = _sort_keys([other for other in self._items if self._groups[other] == self._groups[key]])
            items = [self._select_item(index, other) for other in (group if self._kinds[index].batch else [key])]
        calls_function = reward.path != "environment"
        file = write_replay(self._replay_folder, reward, items, key, outcome) if self._replay_folder and calls_function else None
        raise UserError(window.format_message(reward, key, self._items[key], outcome, file))

    def _warn_of_growth(self, name: str, growth: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.warn(
                f"rewards.{name} ({self._rewards[name].path}) leaves more and more behind: {growth}. Its worker was replaced, and will be "
                "each time; end what a call starts, or keep one client or pool for all calls"
            )


def _validate(rewards: Mapping[str, RewardSpec], settings: RewardSettings, in_process_names: Collection[str]) -> None:
    for name, spec in rewards.items():
        if name not in in_process_names:
            locate_reward(spec.path)
    if settings.combine == "gate" and not any(spec.gate for spec in rewards.values()):
        raise UserError(f"rewarding.combine=gate needs a gate: set rewards.<name>.gate=true for one of {', '.join(rewards)}")


def _sort_keys(keys: list[Hashable]) -> list[Hashable]:
    try:
        return sorted(keys)  # type: ignore[type-var]
    except TypeError:
        return sorted(keys, key=repr)
