"""Sessions in worker processes: hostile tools harm no other episode, nobody is left behind, and what bounds them holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rlkit.environments.base import EpisodeEnd, EpisodeFailure, Observation, Opening
from rlkit.environments.client import SessionClient
from rlkit.errors import RunFailed
from rlkit.rewarding import processes
from rlkit.runtime.processes import list_descendants
from rlkit.types import Key
from tests.rewarding import torture_rewards

from . import torture_environment
from .conftest import OWN, TORTURE, call, make_client, play, say, texts, turn

TIMEOUT_SECONDS, MEMORY_GIB, LIMIT = 5.0, 0.5, 1000  # no answer takes a second, but the machine may be busy
NIGHTLY = pytest.mark.nightly(part="faults")
ANSWERED = {  # what the policy reads; the session goes on in the same worker
    "5 MB": "x" * LIMIT + "\n[cut: the first 1,000 of 5,000,000 characters]",
    "bytes": "\ufffd\x00abc",
    "special tokens": torture_environment.OWN["special tokens"](),
    "surrogates": "?\x00",
    "no text": "Error: TypeError: __str__ returned non-string (type int)",
    "nested": '{"a": [1, {"b": null}]}',
    "exit": "Error: SystemExit: 3",
    "interrupt": "Error: KeyboardInterrupt",
    "cancelled": "Error: CancelledError",
    "raise": "Error: ZeroDivisionError: division by zero",
    "recurse": "Error: RecursionError: maximum recursion depth exceeded",
    "none": "None",
    "nan": "nan",
    "print": "1.0",
    "fork back": "1.0",
    "double fork": "1.0",
    "folder": "1.0",
    "removed folder": "1.0",
    "no builtins": "1.0",
    "patch": "1.0",
    "own loop": "1.0",
}
FATAL = {  # why the episode has no reward
    "hang deaf": f"no answer within {TIMEOUT_SECONDS:g} s; its worker was killed",
    "hard exit": "its worker process ended itself with exit code 7",
    "leave, die": "its worker process was ended by SIGKILL",
    "close all": "its worker process",
    "stop": f"no answer within {TIMEOUT_SECONDS:g} s; its worker was killed",
    "other program": "its worker process",
}


@pytest.fixture(scope="module")
def client() -> Iterator[SessionClient]:
    os.environ["RLKIT_TEST_MARK"] = str(os.getpid())
    rewarding = {"memory_gib": MEMORY_GIB, "env": ("RLKIT_TEST_MARK",)}
    with make_client(f"{TORTURE}:Torture", rewarding, timeout=TIMEOUT_SECONDS, max_observation=LIMIT, workers=len(FATAL) + 1) as client:
        yield client


def test_a_tool_that_misbehaves_is_answered_and_leaves_nothing(client: SessionClient) -> None:
    """One episode does it all: were its worker another one at the end, or changed, `check` would show it."""
    turns = [call("check"), *(call("misbehave", how=how) for how in ANSWERED), call("check"), say("done")]
    answers = play(client, {Key(0, 0, 0): ({}, turns)})[Key(0, 0, 0)]
    assert isinstance(answers[-1], EpisodeEnd), answers[-1]
    first, *others, last = texts(answers)
    assert [text[: len(expected)] for text, expected in zip(others, ANSWERED.values(), strict=True)] == list(ANSWERED.values())
    assert first == last and first.startswith("clean in ")
    assert answers[-1].reward == 2.0


def test_a_worker_that_dies_takes_its_own_episode_and_no_other(client: SessionClient) -> None:
    keys = [Key(0, 0, sample) for sample in range(len(FATAL) + 1)]  # each in a worker of its own
    scripts = {
        key: ({}, [call("check"), call("misbehave", how=how), call("check")]) for key, how in zip(keys, [*FATAL, "none"], strict=True)
    }
    started = time.monotonic()
    *failed, innocent = play(client, scripts).values()
    assert time.monotonic() - started < 4 * TIMEOUT_SECONDS  # the two that hang do so side by side
    for why, answers in zip(FATAL.values(), failed, strict=True):
        assert isinstance(answers[-1], EpisodeFailure) and why in answers[-1].why and len(answers) == 3
    assert isinstance(innocent[-1], EpisodeEnd) and innocent[-1].reward == 2.0
    after = play(client, {Key(1, 0, 0): ({}, [call("check")])})[Key(1, 0, 0)]
    assert isinstance(after[-1], EpisodeEnd) and after[-1].reward == 1.0


def test_the_failure_of_a_session_says_whether_it_was_its_own(client: SessionClient) -> None:
    keys = [Key(2, 0, sample) for sample in range(len(FATAL) + 2)]  # one more than workers: the last shares that of the first
    for key in keys:
        client.open(key, {}, 0)
    opened = set[Key]()
    while len(opened) < len(keys):
        opened |= {key for key, _ in client.collect(5.0)}
    client.act(keys[0], call("misbehave", how="hard exit"))
    failed: dict[Key, Any] = {}
    while len(failed) < 2:
        failed |= dict(client.collect(5.0))
    client.abort()
    assert {key: failure.own for key, failure in failed.items()} == {keys[0]: True, keys[-1]: False}
    assert failed[keys[-1]].why == f"another episode ended its worker: {failed[keys[0]].why}"


@NIGHTLY
@pytest.mark.parametrize("fault", [fault for fault in torture_rewards.FAULTS if fault != "other workers"])
def test_every_fault_ends_in_an_answer_or_a_failure(client: SessionClient, fault: str) -> None:
    guilty, innocent = Key(0, 0, 0), Key(0, 0, 1)
    answers = play(client, {guilty: ({}, [call("misbehave", how=fault), call("check")]), innocent: ({}, [call("check")])})
    assert isinstance(answers[innocent][-1], EpisodeEnd) and answers[innocent][-1].reward == 1.0
    assert isinstance(answers[guilty][-1], EpisodeFailure) or texts(answers[guilty])[-1].startswith("clean in ")


def test_what_is_wrong_with_calls_is_an_answer(client: SessionClient) -> None:
    turns = [turn(("chek", {}), ("misbehave", {}), ("misbehave", {"how": 3}), ("check", "[1]")), turn(*[("check", {})] * 18)]
    answers = play(client, {Key(0, 0, 0): ({}, turns)})[Key(0, 0, 0)]
    wrong, checks = texts(answers)[:4], texts(answers)[4:]
    assert [text.split(";")[0] for text in wrong] == [
        "Error: there is no tool 'chek' (did you mean check?)",
        "Error: misbehave: it needs 'how'",
        "Error: misbehave: how must be string, not 3",
        "Error: the arguments of check must be a JSON object, not list",
    ]
    assert [text.startswith("clean in") for text in checks] == [True] * 16 + [False] * 2
    assert checks[16] == "Error: at most 16 calls of one turn are run; this one was not"
    assert answers[-1] == EpisodeEnd(16.0, {"calls": 20.0, "failed_calls": 4.0})


def test_abort_drops_sessions_and_their_keys(client: SessionClient) -> None:
    key = Key(5, 0, 0)
    client.open(key, {}, 0)
    client.abort()
    client.open(key, {"again": True}, 0)
    client.act(key, call("check"))
    client.finish(key)
    answers = []
    while len(answers) < 3:
        answers += client.collect(5.0)
    assert [type(answer) for _, answer in answers] == [Opening, Observation, EpisodeEnd]


def test_async_calls_of_one_worker_run_together_and_sessions_are_bounded() -> None:
    keys = [Key(0, 0, sample) for sample in range(8)]
    with make_client(f"{OWN}:wait,{OWN}:draw", workers=1, sessions=4, timeout=2.0) as client:
        client.wait_until_ready()
        started = time.monotonic()
        answers = play(client, {key: ({}, [call("wait", seconds=0.5)]) for key in keys})
        assert 1.0 <= time.monotonic() - started < 1.9  # two rounds of four; one after the other is 4 s
        assert all(texts(answers[key]) == ['{"waited": 0.5}'] for key in keys)
        for key in keys[:4]:
            client.open(key, {}, 0)
        client.open(keys[4], {}, 0)
        assert collect_for(client, 0.5) == set(keys[:4])
        client.finish(keys[0])
        assert collect_for(client, 0.5) == {keys[0], keys[4]}
        client.abort()
        late, quick = play(client, {keys[0]: ({}, [call("wait", seconds=5)]), keys[1]: ({}, [call("wait", seconds=0.1)])}).values()
        assert late[-1] == EpisodeFailure("no answer within 2 s") and isinstance(quick[-1], EpisodeEnd)  # the worker lives
        _draws_depend_on_the_seed_alone(client)


def test_a_fork_that_holds_all_that_a_worker_had_open_does_not_hide_its_end(client: SessionClient) -> None:
    turns = [call("misbehave", how=how) for how in ("double fork", "hang")]
    started = time.monotonic()
    answers = play(client, {Key(0, 0, 0): ({}, turns)})[Key(0, 0, 0)]
    assert answers[-1] == EpisodeFailure(f"{FATAL['hang deaf']}") and time.monotonic() - started < 10


def collect_for(client: SessionClient, seconds: float) -> set[Key]:
    """The sessions that are answered within this time."""
    found, until = set(), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        found |= {key for key, _ in client.collect(left)}
    return found


def _draws_depend_on_the_seed_alone(client: SessionClient) -> None:
    draws = [call("draw")] * 3
    alone = texts(play(client, {Key(0, 0, 0): ({}, draws)}, seed=3)[Key(0, 0, 0)])
    together = play(client, {Key(0, 0, sample): ({}, draws) for sample in range(3)}, seed=3)
    assert len(set(alone)) == 3 and all(texts(answers) == alone for answers in together.values())
    assert texts(play(client, {Key(0, 0, 0): ({}, draws)}, seed=4)[Key(0, 0, 0)]) != alone


def test_nobody_is_left_after_a_run_or_a_kill(nobody_left: None) -> None:
    os.environ["RLKIT_TEST_MARK"] = str(os.getpid())
    with make_client(f"{OWN}:Countdown", {"env": ("RLKIT_TEST_MARK",)}, workers=2) as client:
        play(client, {Key(0, 0, 0): ({}, [say("one")]), Key(0, 0, 1): ({}, [say("one")])})
        os.kill(client._supervisor.pid, 9)
        with pytest.raises(RunFailed, match=r"the environment supervisor .* is gone, exit status -9"):
            client.open(Key(1, 0, 0), {}, 0)
            client.collect(5.0)


@NIGHTLY
def test_a_thousand_light_sessions_fit_into_two_gib() -> None:
    keys = [Key(row, 0, 0) for row in range(1000)]
    with make_client(f"{OWN}:Countdown", workers=16) as client:
        for key in keys:
            client.open(key, {"prompt": "Count.", "start": 2}, seed=0)
        opened = set()
        while len(opened) < len(keys):
            opened |= {key for key, answer in client.collect(5.0) if isinstance(answer, Opening)}
        pids = [client._supervisor.pid, *list_descendants(client._supervisor.pid)]
        assert sum(map(processes.measure_memory, pids)) <= 2 * 2**30
        for key in keys:
            client.finish(key)
        ended = []
        while len(ended) < len(keys):
            ended += client.collect(5.0)
        assert {answer for _, answer in ended if isinstance(answer, EpisodeFailure)} == set()
