"""Plays episodes with turns that are known beforehand, and clients of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.environments.base import Answer, EpisodeEnd, EpisodeFailure, Observation
from rlkit.environments.client import SessionClient
from rlkit.environments.spec import EnvironmentSettings
from rlkit.types import Key
from tests.rewarding.conftest import nobody_left
from tests.rewarding.settings import make_settings

__all__ = ["nobody_left"]
HERE = Path(__file__).parent
OWN, TORTURE = HERE / "own_environments.py", HERE / "torture_environment.py"
PATIENCE = 60.0  # seconds after which no answer comes any more


def make_client(path: str | dict[str, str], rewarding: Mapping[str, Any] | None = None, **settings: Any) -> SessionClient:
    return SessionClient(EnvironmentSettings(path=path, **settings), make_settings(**(rewarding or {})))


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    """A turn of one call."""
    return turn((name, more if arguments is None else arguments))


def turn(*calls: tuple[str, Any]) -> dict[str, Any]:
    made = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def say(text: str) -> dict[str, Any]:
    """A turn without calls."""
    return {"role": "assistant", "content": text}


def play(
    client: SessionClient, scripts: Mapping[Key, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]], seed: int = 0
) -> dict[Key, list[Answer]]:
    """All answers of these episodes, played at the same time: row and turns by key. An episode ends with its turns, or when it is over."""
    answers: dict[Key, list[Answer]] = {key: [] for key in scripts}
    turns = {key: list(each) for key, (_, each) in scripts.items()}
    for key, (row, _) in scripts.items():
        client.open(key, row, seed)
    left, until = set(scripts), time.monotonic() + PATIENCE
    while left:
        assert time.monotonic() < until, f"no answer for {left}"
        for key, answer in client.collect(1.0):
            answers[key].append(answer)
            if isinstance(answer, (EpisodeEnd, EpisodeFailure)):
                left.remove(key)
            elif turns[key] and not (isinstance(answer, Observation) and answer.done):
                client.act(key, turns[key].pop(0))
            else:
                client.finish(key)
    return answers


def texts(answers: Sequence[Answer]) -> list[str]:
    """What the environment wrote after the opening, message by message."""
    return [message["content"] for answer in answers if isinstance(answer, Observation) for message in answer.messages]
