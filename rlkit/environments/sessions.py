"""One episode with an environment: what each shape is called with, and what its answers become.

Every call of the environment's own code goes through a Caller (worker.py), which knows the timeout. What a tool raises is an answer to the
policy. What anything else raises (reset, step, get_reward) ends the session without a reward; UserError stops the run.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rlkit.environments.base import EpisodeEnd, Message, Observation
from rlkit.environments.calls import MAX_CALLS, BadCall, choose_tools, describe_exception, read_arguments, read_name
from rlkit.environments.loading import GYMNASIUM, OPENENV, SKYRL, LoadedEnvironment
from rlkit.environments.openenv import build_action, find_action_type, read_observation
from rlkit.environments.texts import cut_text, to_message, to_text
from rlkit.errors import UserError
from rlkit.rewarding.scores import parse_entries, parse_number

Schemas = tuple[Mapping[str, Any], ...]


class Start(NamedTuple):
    """The prompt; the names of the environment's tools, or schemas of the row in their place; None: there are no tools."""

    messages: list[Message]
    tools: list[str] | Schemas | None


class Caller(Protocol):
    """Calls code of an environment, sync or async, and returns what it returns. Raises what it raises, and CallOverdue."""

    async def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any: ...


class CallOverdue(Exception):
    """An async call took longer than the timeout; the session is lost."""


class Session(Protocol):
    """An episode in a worker; open comes first, finish or close last."""

    async def open(self, row: Mapping[str, Any], seed: int) -> Start: ...

    async def act(self, message: Message) -> Observation: ...

    async def finish(self) -> EpisodeEnd: ...

    async def close(self) -> None: ...


def create_session(environment: LoadedEnvironment, call: Caller, limit: int) -> Session:
    """limit: characters of one answer."""
    kinds: dict[str, Callable[[LoadedEnvironment, Caller, int], Session]]
    kinds = {GYMNASIUM: _TextSession, SKYRL: _SkyRLSession, OPENENV: _OpenEnvSession}
    return kinds.get(environment.kind.shape, _ToolSession)(environment, call, limit)


class _OwnedSession:
    """What sessions with an object of their own share. The object is made when the session opens."""

    def __init__(self, environment: LoadedEnvironment, call: Caller, limit: int) -> None:
        self.environment, self.call, self.limit = environment, call, limit
        self.owner: Any = None
        self.rewards: list[float] = []  # of the turns

    async def make(self, row: Mapping[str, Any]) -> None:
        if self.environment.make is not None:
            self.owner = await self.call(self.environment.make, row)

    async def close(self) -> None:
        if callable(closing := getattr(self.owner, "close", None)):
            await self.call(closing)

    async def read_metrics(self) -> dict[str, float]:
        method = getattr(self.owner, "get_metrics", None)
        found = await self.call(method) if callable(method) else None
        return parse_entries(found) if isinstance(found, Mapping) else {}

    def add_reward(self, value: Any) -> float | None:
        reward = parse_number(value)
        self.rewards += [] if reward is None else [reward]
        return reward

    def choose(self, row: Mapping[str, Any]) -> tuple[list[str], Schemas | None]:
        try:
            return choose_tools(row, self.environment.kind.tools)
        except ValueError as error:
            raise UserError(f"{self.environment.where}: {error}") from None


class _ToolSession(_OwnedSession):
    """Plain functions, or a class whose public methods are tools (TRL)."""

    async def open(self, row: Mapping[str, Any], seed: int) -> Start:
        await self.make(row)
        names, schemas = self.choose(row)
        of = self.environment.functions
        self.tools = {name: getattr(self.owner, name) if self.owner is not None else of[name] for name in names}
        self.schemas = {name: (self.environment.kind.tools or {})[name] for name in names}
        self.made = self.wrong = 0  # calls that were made, and those that could not be made or raised
        messages = to_messages(row.get("prompt"))
        if callable(reset := getattr(self.owner, "reset", None)):
            added = await self.call(reset, **self._select(reset, row, seed))
            if added is not None and not isinstance(added, str):
                raise UserError(f"{self.environment.where}: reset returns text for the prompt, or None; it returned {type(added).__name__}")
            messages = append_text(messages, to_text(added), "") if added else messages
        return Start(messages, schemas or names or None)

    async def act(self, message: Message) -> Observation:
        calls = message.get("tool_calls") or ()
        answers = []
        for number, call in enumerate(calls):
            over = self._is_over()
            text = "the episode is over" if over else f"at most {MAX_CALLS} calls of one turn are run; this one was not"
            answer = f"Error: {text}" if over or number >= MAX_CALLS else await self._answer(call)
            reply = {"role": "tool", "name": read_name(call), "content": cut_text(answer, self.limit)}
            identity = call.get("id") if isinstance(call, Mapping) else None
            answers.append(reply if identity is None else {**reply, "tool_call_id": to_text(identity)})
        return Observation(tuple(answers), done=not calls or self._is_over())

    async def finish(self) -> EpisodeEnd:
        scoring = getattr(self.owner, "get_reward", None)
        reward = parse_number(await self.call(scoring)) if callable(scoring) else None
        counted = {"calls": float(self.made), "failed_calls": float(self.wrong)}
        return EpisodeEnd(reward, {**counted, **await self.read_metrics()})

    def _is_over(self) -> bool:
        """Environments in TRL's shape mark their end by an attribute, and answer later calls with an error."""
        return self.owner is not None and getattr(self.owner, "done", False) is True

    async def _answer(self, call: Any) -> str:
        self.made += 1
        try:
            arguments = read_arguments(call, self.schemas)
            return to_text(await self.call(self.tools[read_name(call)], **arguments))
        except (CallOverdue, UserError):
            raise
        except BadCall as error:
            self.wrong += 1
            return f"Error: {error}"
        except BaseException as error:  # noqa: BLE001 - SystemExit too: what a tool raises is its answer, as in TRL
            self.wrong += 1
            return f"Error: {describe_exception(error)}"

    def _select(self, reset: Callable[..., Any], row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The columns that reset names, or all; `seed` where it names that and no column is called so."""
        parameters = inspect.signature(reset).parameters.values()
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        offered = {**({"seed": seed} if "seed" in names else {}), **row}
        required = [p.name for p in parameters if p.name in names and p.default is p.empty]
        if missing := [name for name in required if name not in offered]:
            raise UserError(
                f"{self.environment.where}: reset needs {', '.join(map(repr, missing))}, which the data row does not have "
                f"(it has: {', '.join(map(str, row)) or 'no columns'})"
            )
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return offered if takes_all else {name: value for name, value in offered.items() if name in names}


class _TextSession(_OwnedSession):
    """Gymnasium and GEM: reset and step with text."""

    async def open(self, row: Mapping[str, Any], seed: int) -> Start:
        await self.make(row)
        schemas = self.choose(row)[1]
        parameters = inspect.signature(self.owner.reset).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        offered = {"seed": seed, "options": dict(row)}
        returned = await self.call(self.owner.reset, **{name: offered[name] for name in offered if takes_all or name in parameters})
        first = self._read_text(returned[0] if isinstance(returned, tuple) and len(returned) == 2 else returned, "reset")
        messages = to_messages(row.get("prompt"))
        return Start(append_text(messages, first, "\n\n") if first else messages, schemas)

    async def act(self, message: Message) -> Observation:
        returned = await self.call(self.owner.step, to_text(message.get("content") or ""))
        if not isinstance(returned, tuple) or len(returned) not in (4, 5):
            raise UserError(
                f"{self.environment.where}: step returns (text, reward, terminated, truncated, info); it returned {type(returned).__name__}"
                + (f" of {len(returned)}" if isinstance(returned, tuple) else "")
            )
        text, reward, *ends = returned[:-1]
        answer = self._read_text(text, "step")
        messages = ({"role": "user", "content": cut_text(answer, self.limit)},) if answer else ()
        return Observation(messages, done=any(map(bool, ends)), reward=self.add_reward(reward))

    async def finish(self) -> EpisodeEnd:
        return EpisodeEnd(math.fsum(self.rewards), await self.read_metrics())

    def _read_text(self, value: Any, method: str) -> str:
        if value is None or isinstance(value, str):
            return to_text(value or "")
        shape = getattr(value, "shape", None)
        raise UserError(
            f"{self.environment.where}: {method} returned {type(value).__name__}{f' of shape {shape}' if shape is not None else ''} as "
            "observation; a language model reads text, so reset and step must return text: wrap the environment in a class that puts its "
            "observations into words"
        )


class _SkyRLSession(_OwnedSession):
    """SkyRL's BaseTextEnv: init and step with messages."""

    async def open(self, row: Mapping[str, Any], seed: int) -> Start:
        await self.make(row)
        schemas = self.choose(row)[1]
        returned = await self.call(self.owner.init, to_messages(row.get("prompt")))
        messages = returned[0] if isinstance(returned, tuple) and len(returned) == 2 else returned
        if not isinstance(messages, (list, tuple)) or not all(isinstance(one, Mapping) for one in messages):
            raise UserError(f"{self.environment.where}: init returns (messages, info); it returned {type(returned).__name__}")
        return Start([dict(one) for one in messages], schemas)

    async def act(self, message: Message) -> Observation:
        found = await self.call(self.owner.step, to_text(message.get("content") or ""))
        if not isinstance(found, Mapping) or not {"observations", "reward", "done"} <= found.keys():
            raise UserError(
                f"{self.environment.where}: step returns a mapping with observations, reward and done; it returned {type(found).__name__}"
            )
        messages = tuple(to_message(one, self.limit) for one in found["observations"] or ())
        return Observation(messages, done=bool(found["done"]), reward=self.add_reward(found["reward"]))

    async def finish(self) -> EpisodeEnd:
        return EpisodeEnd(math.fsum(self.rewards), await self.read_metrics())


class _OpenEnvSession(_OwnedSession):
    """A client of an OpenEnv server, one connection an episode."""

    async def open(self, row: Mapping[str, Any], seed: int) -> Start:
        await self.make(row)
        self.action = find_action_type(type(self.owner))
        result = await self.call(self.owner.reset, seed=seed)
        first, messages = read_observation(result.observation), to_messages(row.get("prompt"))
        return Start(append_text(messages, first, "\n\n") if first else messages, self.choose(row)[1])

    async def act(self, message: Message) -> Observation:
        try:
            action = build_action(self.action, to_text(message.get("content") or ""))
        except Exception as error:  # noqa: BLE001 - the class of the action checks its fields in its own way
            return Observation(({"role": "user", "content": cut_text(f"Error: {describe_exception(error)}", self.limit)},), done=False)
        result = await self.call(self.owner.step, action)
        text = read_observation(result.observation)
        messages = ({"role": "user", "content": cut_text(to_text(text), self.limit)},) if text else ()
        return Observation(messages, done=bool(result.done), reward=self.add_reward(result.reward))

    async def finish(self) -> EpisodeEnd:
        return EpisodeEnd(math.fsum(self.rewards), await self.read_metrics())


def to_messages(prompt: Any) -> list[Message]:
    """The prompt of a row as messages: a text is one of the user; nothing is none."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    return [dict(message) for message in prompt or ()]


def append_text(messages: Sequence[Message], text: str, between: str) -> list[Message]:
    """The messages with `text` at the end of the last one of the user; as a new one where that is not the last."""
    if not messages or messages[-1].get("role") != "user":
        return [*messages, {"role": "user", "content": text}]
    *before, last = messages
    content = last["content"]
    longer = f"{content}{between}{text}" if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return [*before, {**last, "content": longer}]
