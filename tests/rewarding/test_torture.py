"""Rewards that misbehave in every known way: each is reported by name, the others' scores are right, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import OutcomeKind
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings

from . import torture_rewards
from .conftest import TORTURE, score_all

TIMEOUT_SECONDS, MEMORY_GIB = 1.0, 0.5
NIGHTLY = pytest.mark.nightly(part="faults")
ERROR, TIMEOUT, SCORE = OutcomeKind.ERROR, OutcomeKind.TIMEOUT, OutcomeKind.SCORE

FAULTS = {
    "hang": (TIMEOUT, "no answer within 1 s"),
    "hang in c": (TIMEOUT, "no answer within 1 s"),
    "hang deaf": (TIMEOUT, "no answer within 1 s"),
    "sleep": (TIMEOUT, "no answer within 1 s"),
    "exit": (ERROR, "SystemExit: 3"),
    "hard exit": (ERROR, "ended itself with exit code 7"),
    "abort": (ERROR, "ended by SIGABRT"),
    "kill": (ERROR, "ended by SIGKILL"),
    "recurse": (ERROR, "RecursionError"),
    "overflow": (None, ""),  # a stack overflow or the timeout, whichever comes first on this Python
    "allocate": (ERROR, "MemoryError"),
    "fork 100": (SCORE, ""),
    "fork back": (SCORE, ""),
    "double fork": (SCORE, ""),
    "leave": (SCORE, ""),
    "leave, die": (ERROR, "ended by SIGKILL"),
    "thread": (ERROR, "ZeroDivisionError"),
    "close all": (ERROR, "its worker process"),
    "print": (SCORE, ""),
    "nan": (ERROR, "must be finite and at most 1e+100 in size, it returned float nan"),
    "inf": (ERROR, "it returned float -inf"),
    "string": (ERROR, "it returned str 'good'"),
    "list": (ERROR, "it returned list [1.0]"),
    "bad dict": (ERROR, "a dict needs one of the entries score, reward, overall, it has value"),
    "none": (OutcomeKind.NOT_APPLICABLE, ""),
    "raise": (ERROR, "ZeroDivisionError: division by zero"),
    "interrupt": (ERROR, "KeyboardInterrupt"),
}
ANY_END = (None, "")  # what is left behind may strike before the call has ended
LEFT_BEHIND = {
    **dict.fromkeys(["trace", "profile", "trace of threads", "alarm", "profiling timer", "handlers", "blocked signals"], (SCORE, "")),
    **dict.fromkeys(["exit later", "folder", "removed folder", "umask", "no streams", "closed streams", "closed output"], (SCORE, "")),
    **dict.fromkeys(["output to a file", "recursion limit", "patch", "no builtins", "no modules", "no garbage collection"], (SCORE, "")),
    **dict.fromkeys(["short decimals", "short integers", "few files", "few files for ever", "environment", "threads"], (SCORE, "")),
    **dict.fromkeys(["busy thread", "later thread", "zombies", "shared memory of a child", "kept memory", "at exit"], (SCORE, "")),
    **dict.fromkeys(["trace that raises", "trace of frames", "profile that raises", "later signal", "low recursion limit"], ANY_END),
    **dict.fromkeys(["all files", "patch builtins", "other workers", "own loop", "other program", "shared memory"], ANY_END),
    "stop": (TIMEOUT, "no answer within 1 s"),
    "segfault": (ERROR, "ended by SIGSEGV"),
    "own group": (ERROR, "ended by SIGKILL"),
    "pattern": (TIMEOUT, "no answer within 1 s"),
    "large power": (None, ""),  # time or memory, whichever ends first
    "deadlock": (TIMEOUT, "no answer within 1 s"),
    "deep json": (ERROR, "RecursionError"),
}
RETURNED = {
    "complex": (ERROR, "a score is a number or None, it returned complex (1+0j)"),
    "numpy complex": (ERROR, "a score is a number or None, it returned complex128"),
    "numpy text": (ERROR, "a score is a number or None, it returned ndarray array('1.5'"),
    "numpy date": (ERROR, "a score is a number or None, it returned datetime64"),
    "numpy object": (ERROR, "a score is a number or None, it returned ndarray"),
    "numpy whole": (SCORE, ""),
    "text subclass": (ERROR, "a score is a number or None, it returned Text '1'"),
    "user string": (ERROR, "a score is a number or None, it returned UserString '1'"),
    "large": (ERROR, "a score must be finite and at most 1e+100 in size, it returned float 1.01e+100"),
    "large integer": (ERROR, "a score must be finite and at most 1e+100 in size, it returned int (ValueError in its repr)"),
    "large entry": (SCORE, ""),
    "decimal nan": (ERROR, "a score must be finite and at most 1e+100 in size, it returned Decimal Decimal('sNaN')"),
    "fraction": (SCORE, ""),
    "odd": (ERROR, "a score is a number or None, it returned Odd (RuntimeError in its repr)"),
    "odd mapping": (ERROR, "no key"),
    "odd float": (ERROR, "TypeError"),
    "odd keys": (SCORE, ""),
    "many entries": (SCORE, ""),
    "generator": (ERROR, "a score is a number or None, it returned generator"),
    "class": (ERROR, "a score is a number or None, it returned type <class 'float'>"),
    "wordless": (ERROR, "words \\ud800 \\x1b[2J"),
    "mute": (ERROR, "Mute: <exception str() failed>"),
    "stop iteration": (ERROR, "StopIteration"),
    "generator exit": (ERROR, "GeneratorExit"),
    "cancelled": (ERROR, "CancelledError"),
    "group of errors": (ERROR, "BaseExceptionGroup"),
}
HOSTILE = FAULTS | LEFT_BEHIND | RETURNED
IN_CI = {*FAULTS, *RETURNED, "patch", "removed folder", "later signal", "trace of frames"}


@pytest.fixture(scope="module")
def client() -> Iterator[RewardClient]:
    os.environ["RLKIT_TEST_MARK"] = str(os.getpid())
    settings = make_settings(timeout=TIMEOUT_SECONDS, max_failure_rate=1.0, memory_gib=MEMORY_GIB, env=("RLKIT_TEST_MARK",))
    with RewardClient({"tortured": RewardSpec(path=TORTURE)}, settings) as client:
        yield client


def test_each_hostile_reward_stands_in_one_table() -> None:
    assert set(torture_rewards.FAULTS) == set(HOSTILE) | {"kill later"} and len(HOSTILE) >= 80
    assert len(IN_CI) >= len(HOSTILE) // 10


@pytest.mark.parametrize("fault", [pytest.param(name, marks=[] if name in IN_CI else NIGHTLY) for name in HOSTILE])
def test_a_misbehaving_call_is_reported_and_harms_no_other(client: RewardClient, fault: str) -> None:
    kind, detail = HOSTILE[fault]
    others = ["x" * length for length in range(8)]
    for number, completion in enumerate([*others[:4], fault, *others[4:]]):
        client.submit((fault, number), {"prompt": "p", "completion": completion})
    results = list(client.collect([(fault, number) for number in range(9)]).values())
    outcome = results.pop(4).components["tortured"]
    assert [result.reward for result in results] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert outcome.kind is kind or kind is None
    assert detail in outcome.detail and type(outcome.detail) is str and outcome.detail.replace("\n", "").replace("\t", "").isprintable()
    assert all(type(name) is str and name.isprintable() and len(name) <= 80 for name in outcome.metrics) and len(outcome.metrics) <= 100
    assert outcome.value == (1.0 if outcome.kind is SCORE else None)


@pytest.mark.timeout(100)
def test_worker_killed_by_what_an_earlier_call_left_gives_right_scores() -> None:
    items = [{"prompt": "p", "completion": "kill later"}] + [{"prompt": "p", "completion": "x" * (n % 7)} for n in range(3000)]
    results = score_all({"tortured": RewardSpec(path=TORTURE)}, items, workers=1)
    assert [result.reward for result in results] == [1.0] + [float(n % 7) for n in range(3000)]


def test_list_of_the_wrong_length_and_a_string_fail_their_group_alone() -> None:
    completions = ["short list", "b", "a string", "d", "eeeee", "ffffff"]
    path = TORTURE.replace(":score", ":group")
    items = [{"prompt": "p", "completion": completion} for completion in completions]
    results = score_all({"g": RewardSpec(path=path)}, items, group_size=2, max_failure_rate=1.0)
    assert [result.reward for result in results] == [None, None, None, None, 5.0, 6.0]
    assert results[0].components["g"].detail == "a group of 2 needs 2 scores, it returned 1"
    assert results[2].components["g"].detail == "a group of 2 needs a list of 2 scores, it returned str '11'"


def test_one_percent_hanging_costs_their_timeouts_and_no_more() -> None:
    items = [{"prompt": "p", "completion": "hang in c" if n % 100 == 50 else "x" * (n % 5)} for n in range(1000)]
    with RewardClient({"tortured": RewardSpec(path=TORTURE)}, make_settings(timeout=0.5)) as client:
        client.wait_until_ready()
        started = time.monotonic()
        for number, item in enumerate(items):
            client.submit(number, item)
        results = client.collect(range(1000))
        seconds = time.monotonic() - started
    assert [number for number, result in results.items() if result.reward is None] == list(range(50, 1000, 100))
    assert all(results[number].reward == number % 5 for number in range(1000) if number % 100 != 50)
    assert seconds < 60  # 10 timeouts and kills over two workers are 12.5; if those who went out with them had hung too, 400


@pytest.mark.usefixtures("nobody_left")
def test_close_leaves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_TEST_MARK", str(os.getpid()))
    faults = ["fork 100", "double fork", "leave", "leave, die", "fork back", "hang"]
    items = [{"prompt": "p", "completion": fault} for fault in faults]
    score_all({"tortured": RewardSpec(path=TORTURE)}, items, timeout=TIMEOUT_SECONDS, max_failure_rate=1.0, env=("RLKIT_TEST_MARK",))


RUN = """
import os, sys, time
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings
client = RewardClient({"tortured": RewardSpec(path=sys.argv[1])}, make_settings(timeout=60, env=("RLKIT_TEST_MARK",)))
client.wait_until_ready()
for number, fault in enumerate(["fork 100", "double fork", "leave", "hang"]):
    client.submit(number, {"prompt": "p", "completion": fault})
client.collect([0, 1, 2])
print("busy", flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_trainer_that_is_killed_leaves_nobody_and_workers_say_nothing(monkeypatch: pytest.MonkeyPatch, fatal: signal.Signals) -> None:
    monkeypatch.setenv("RLKIT_TEST_MARK", str(os.getpid()))
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", RUN, TORTURE],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as trainer:
        assert trainer.stdout is not None and trainer.stderr is not None
        assert trainer.stdout.readline() == "busy\n"
        os.killpg(trainer.pid, fatal)  # the whole group, as a terminal's Ctrl-C does
        text = trainer.stderr.read()
    assert "supervisor" not in text and "worker" not in text and "multiprocessing" not in text
    assert text.count("Traceback") <= 1  # the trainer's own KeyboardInterrupt
