"""Reward files, reward clients of their own, and checks that no process is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding import kernel, sandbox
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import SampleReward
from rlkit.rewarding.sandbox import Sandbox
from rlkit.rewarding.spec import RewardSpec
from rlkit.runtime.processes import list_descendants
from tests.rewarding.settings import make_settings

HERE = Path(__file__).parent
SANDBOXES = ("namespaces", "landlock", "landlock without scopes")  # the last as on kernels before 6.12
TORTURE = f"{HERE / 'torture_rewards.py'}:score"


@pytest.fixture
def write_rewards(tmp_path: Path) -> Callable[[str], str]:
    """Write a reward file; returns its path, to which `:function` is added."""

    def write(source: str) -> str:
        file = tmp_path / "my_rewards.py"
        file.write_text(source)
        return str(file)

    return write


def score_all(
    rewards: dict[str, RewardSpec], items: list[dict[str, Any]], group_size: int | None = None, **settings: Any
) -> list[SampleReward]:
    """The rewards of these items by a client of its own; groups of group_size in their order."""
    with RewardClient(rewards, make_settings(**settings)) as client:
        for number, item in enumerate(items):
            client.submit(number, item, None if group_size is None else number // group_size, group_size)
        return list(client.collect(range(len(items))).values())


def own_descendants() -> set[int]:
    """Every process under this one."""
    return set(list_descendants(os.getpid()))


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """Fails the test if a process that it started, or that calls itself a sleeper of ours, is alive after it."""
    before = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()}
    yield
    until = time.monotonic() + 2.0
    while (left := _ours(before)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left


def _ours(before: set[int]) -> dict[int, str]:
    """New processes of this test, marked by the environment variable that its workers get."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in before:
            with suppress(OSError):  # it has ended meanwhile
                if f"RLKIT_TEST_MARK={os.getpid()}".encode() in Path(entry.path, "environ").read_bytes():
                    found[int(entry.name)] = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def explain_no_sandbox() -> str:
    """Why this machine runs nothing in any sandbox; empty where it does."""
    try:
        sandbox.choose_sandbox()
    except sandbox.SandboxUnavailable as error:
        return str(error)
    return ""


@cache
def find_sandbox(name: str) -> Sandbox | str:
    """The sandbox of this name, or why this machine does not have it."""
    try:
        abi = 0 if name == "namespaces" else kernel.find_landlock_abi()
        found = Sandbox() if name == "namespaces" else Sandbox("landlock", abi if name == "landlock" else min(abi, 5), "refused by a test")
        found = replace(found, groups=sandbox.choose_sandbox().groups)
        sandbox.run_each("", [""], sandbox=found)
    except (OSError, sandbox.SandboxUnavailable) as error:
        return f"NO SANDBOX of {name}: nothing was tried in it. {error}"
    return found


@pytest.fixture(params=SANDBOXES)
def box(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Each sandbox in turn, as if this machine had chosen it."""
    found = find_sandbox(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    monkeypatch.setattr(sandbox, "choose_sandbox", lambda: found)
    return found
