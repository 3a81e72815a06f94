"""The trainer's side of environments: sessions in worker processes, under a supervisor process of their own.

    with SessionClient(settings, rewarding) as client:      # returns at once; a worker loads the environment meanwhile
        client.open(key, row, seed)
        for key, answer in client.collect(timeout=1.0): ...

It is an EnvironmentClient (base.py). What a session answers depends on its row, its seed and the turns of the policy alone, not on other
sessions, as long as the environment keeps nothing outside its objects.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlkit.environments.base import Answer, EpisodeEnd, EpisodeFailure, Message
from rlkit.environments.job import ONLY, EnvironmentKind, SessionJob, WorkerEnvironment
from rlkit.environments.loading import locate_environment
from rlkit.environments.spec import EnvironmentSettings
from rlkit.errors import UserError
from rlkit.rewarding.spec import RewardSettings
from rlkit.rewarding.supervision import POLL_SECONDS, StopCheck, end_supervisor, receive_message, send_message, start_supervisor

if TYPE_CHECKING:  # it imports torch, which `rlkit env try` does without
    from rlkit.types import Key

SERVE = ("rlkit.environments.supervisor", "serve_environments")
WHAT = "the environment supervisor"


class SessionClient:
    """Runs sessions in worker processes: see the module. rewarding: limits of worker processes, and the variables that they get.

    Raises UserError where a path names nothing; collect and wait_until_ready raise it where the environment cannot be used or a row does
    not fit it, and RunFailed where the supervisor is gone.
    """

    def __init__(self, settings: EnvironmentSettings, rewarding: RewardSettings) -> None:
        environments = list_environments(settings)
        for environment in environments:
            locate_environment(environment.path)
        self._kinds: dict[str, EnvironmentKind] | None = None
        self._names = [environment.name for environment in environments]
        self._keys: dict[int, Key] = {}  # of sessions, by number
        self._numbers: dict[Key, int] = {}
        self._count = 0
        self._looked = 0.0  # when it was last seen whether the supervisor is stopped
        self._supervisor, self._connection = start_supervisor(SERVE, rewarding.env)
        self._stop_check = StopCheck(self._supervisor, WHAT)
        work = SessionJob(environments, settings.timeout, settings.max_observation, rewarding.memory_gib)
        self._send((work, settings.workers, settings.sessions, rewarding.load_timeout))

    def __enter__(self) -> SessionClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def wait_until_ready(self) -> Mapping[str, EnvironmentKind]:
        """What each environment is, by name (one alone has the name ""). Waits until a worker has loaded them."""
        while self._kinds is None:
            self._receive()
        return self._kinds

    def open(self, key: Key, row: Mapping[str, Any], seed: int) -> None:
        if key in self._numbers:
            raise ValueError(f"the session {key!r} is open already")
        try:
            payload = pickle.dumps(dict(row), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever the __reduce__ of a column raises
            raise UserError(f"row {key.prompt}: its columns cannot be sent to a worker ({error}); use plain values in the data") from error
        self._count += 1
        self._keys[self._count], self._numbers[key] = key, self._count
        self._send(("open", self._count, payload, seed))

    def act(self, key: Key, message: Message) -> None:
        self._send(("act", self._numbers[key], dict(message)))

    def finish(self, key: Key) -> None:
        self._send(("finish", self._numbers[key]))

    def collect(self, timeout: float) -> list[tuple[Key, Answer]]:
        found: list[tuple[Key, Answer]] = []
        until = time.monotonic() + timeout
        while self._connection.poll(0.0 if found else max(0.0, until - time.monotonic())):
            match self._receive():
                case ("answer", int(number), answer) if number in self._keys:  # not one from before an abort
                    key = self._keys[number]
                    found.append((key, answer))
                    if isinstance(answer, (EpisodeEnd, EpisodeFailure)):
                        del self._keys[number], self._numbers[key]
        if not found and (now := time.monotonic()) - self._looked >= POLL_SECONDS:
            self._looked = now
            self._stop_check.look()
        return found

    def abort(self) -> None:
        self._keys.clear()
        self._numbers.clear()
        self._send(("abort",))

    def close(self) -> None:
        end_supervisor(self._supervisor, self._connection)

    def _send(self, message: tuple[Any, ...]) -> None:
        send_message(self._supervisor, self._connection, message, WHAT)

    def _receive(self) -> tuple[Any, ...]:
        message: tuple[Any, ...] = receive_message(self._supervisor, self._connection, WHAT)
        if message[0] == "ready":
            self._kinds = dict(zip(self._names, message[1], strict=True))
        return message


def list_environments(settings: EnvironmentSettings) -> tuple[WorkerEnvironment, ...]:
    """The environments of the settings. Raises UserError where the args of several are not given by name."""
    if isinstance(settings.path, str):
        return (WorkerEnvironment(ONLY, settings.path, settings.args),)
    if not settings.path or "" in settings.path:
        raise UserError("environment.path: several environments are given by name, {wordle: wordle, maze: my_env.py:Maze}")
    for name, args in settings.args.items():
        if name not in settings.path or not isinstance(args, dict):
            raise UserError(
                f"environment.args: with several environments, args are given by the name of one ({', '.join(settings.path)}); "
                f"here is {name}={args!r}"
            )
    return tuple(WorkerEnvironment(name, path, settings.args.get(name, {})) for name, path in settings.path.items())
