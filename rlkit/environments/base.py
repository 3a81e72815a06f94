"""What the rollout and the sessions of environments exchange: a session is one episode, named by the key of its sample.

    client.open(key, row, seed)          -> Opening: the prompt and the tools
    client.act(key, assistant message)   -> Observation: the messages that answer the turn
    client.finish(key)                   -> EpisodeEnd: reward and metrics; the session is gone
    client.collect(timeout)              what has arrived, in the order of arrival; EpisodeFailure in place of any of them ends the session

Messages are those of a chat template: {"role": "tool" | "user", "content": text, "name"?, "tool_call_id"?}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # workers import this module, and rlkit.types imports torch
    from rlkit.types import Key

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Opening:
    """The prompt, which `reset` may have changed, and the JSON schemas of the tools; None: there are no tools."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None


@dataclass(frozen=True)
class Observation:
    """The messages that answer one turn of the policy, in the order of its calls; none where it called nothing and the environment adds
    nothing. done: the episode is over. reward: of this turn, where the environment gives one."""

    messages: tuple[Message, ...]
    done: bool
    reward: float | None = None


@dataclass(frozen=True)
class EpisodeEnd:
    """What the environment makes of the whole episode. reward None: it has no reward. metrics: its numbers, by name."""

    reward: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EpisodeFailure:
    """The session is lost: its worker died, or a call took longer than its timeout. why: in words. own: by a call of this session; False:
    another session ended the worker, so that this one may be opened again."""

    why: str
    own: bool = True


Answer = Opening | Observation | EpisodeEnd | EpisodeFailure


class EnvironmentClient(Protocol):
    """Runs the sessions of environments; lives in the trainer's process and talks to workers. Only collect waits."""

    def open(self, key: Key, row: Mapping[str, Any], seed: int) -> None:
        """Start a session; where `sessions` of them are open already, it starts when another ends.

        row: the columns of the data row, `prompt` among them (text or messages). seed: the same for a whole group."""

    def act(self, key: Key, message: Message) -> None:
        """Hand on a turn of the policy: {"role": "assistant", "content": text, "tool_calls"?: [...]}."""

    def finish(self, key: Key) -> None:
        """The episode is over: get its reward and metrics, and close the session."""

    def collect(self, timeout: float) -> list[tuple[Key, Answer]]:
        """What has been answered since the last call. Waits at most `timeout` seconds where nothing is there."""

    def abort(self) -> None:
        """Drop all sessions; none of them is answered any more."""

    def close(self) -> None:
        """End the workers and every process that they started."""
