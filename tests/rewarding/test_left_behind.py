"""What calls may leave in their worker, as long as it stops growing; and what they may not use up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import SampleReward
from rlkit.rewarding.restore import FIRST_CALLS, SLACK
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings
from tests.rewards.servers import run_server


def make_calls(rewards: dict[str, RewardSpec], count: int, **settings: Any) -> tuple[list[SampleReward], list[str]]:
    """The rewards of `count` samples on one worker, and the warnings."""
    warnings: list[str] = []
    with RewardClient(rewards, make_settings(workers=1, **settings)) as client:
        client.warn = warnings.append
        for number in range(count):
            client.submit(number, {"prompt": "p", "completion": "x" * (number % 7)})
        return list(client.collect(range(count)).values()), warnings


def count_calls_of_workers(results: Sequence[SampleReward], name: str) -> list[int]:
    return list(Counter(result.metrics[f"{name}/pid"] for result in results).values())


LAZY = """
import os, subprocess
from concurrent.futures import ThreadPoolExecutor
kept = {}

def score(completion, *, url):
    if not kept:
        import httpx
        kept.update(client=httpx.Client(), pool=ThreadPoolExecutor(16), calls=0, cat=subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        os.environ["LAZY_CLIENT"] = "made"
    kept["calls"] += 1
    sizes = list(kept["pool"].map(len, [completion] * 8))
    if kept["calls"] % 25 == 0:
        answer = kept["client"].post(url, json={"completion": completion}).json()
        assert answer["score"] == len(completion)
    return {"score": sum(sizes) / 8, "pid": os.getpid()}
"""


def test_a_reward_with_a_lazy_client_and_a_pool_makes_a_thousand_calls_on_one_worker(write_rewards: Callable[[str], str]) -> None:
    with run_server() as server:
        server.takes = 0.0
        spec = {"lazy": RewardSpec(path=f"{write_rewards(LAZY)}:score", args={"url": server.url})}
        results, warnings = make_calls(spec, 1000)
        assert len(server.seen) == 40
    assert [result.reward for result in results] == [float(n % 7) for n in range(1000)]
    assert count_calls_of_workers(results, "lazy") == [1000] and warnings == []


GROWING = """
import os, threading, time
kept = []

def threads(completion):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return answer(completion)

def processes(completion):
    if os.fork() == 0:
        time.sleep(600)
    return answer(completion)

def files(completion):
    kept.append(open(os.devnull))
    return answer(completion)

def variables(completion):
    os.environ[f"GROWN_{len(os.environ)}"] = "x"
    return answer(completion)

def answer(completion):
    return {"score": len(completion), "pid": os.getpid()}
"""
WORDS = {"threads": "threads", "processes": "child processes", "files": "open files", "variables": "environment variables"}


@pytest.mark.slow
@pytest.mark.parametrize("what", WORDS)
def test_what_grows_without_end_replaces_the_worker_with_one_warning(write_rewards: Callable[[str], str], what: str) -> None:
    most = FIRST_CALLS + SLACK + 1  # calls of a worker
    path = f"{write_rewards(GROWING)}:{what}"
    results, warnings = make_calls({"grows": RewardSpec(path=path)}, 2 * most + 9)
    assert [result.reward for result in results] == [float(n % 7) for n in range(2 * most + 9)]
    assert count_calls_of_workers(results, "grows") == [most, most, 9]
    [warning] = warnings
    assert warning.startswith(f"rewards.grows ({path}) leaves more and more behind: {most} {WORDS[what]} after {most} calls")


@pytest.mark.slow
def test_memory_that_earlier_calls_keep_costs_no_later_sample(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import os
kept = []
def score(completion):
    kept.append(bytearray(100 * 2**20))
    return {"score": len(completion), "pid": os.getpid()}
""")
    results, warnings = make_calls({"keeps": RewardSpec(path=f"{file}:score")}, 8, memory_gib=0.4)
    assert [result.reward for result in results] == [float(n % 7) for n in range(8)] and warnings == []
    assert 2 <= len(count_calls_of_workers(results, "keeps")) <= 5


@pytest.mark.slow
def test_shared_mappings_count_as_memory_in_a_worker_and_in_its_children(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import mmap, os, time
def fill():
    shared = mmap.mmap(-1, 400 * 2**20)
    for start in range(0, 400 * 2**20, 2**20):
        shared[start:start + 2**20] = bytes(2**20)
    time.sleep(60)
def score(completion):
    if completion == "x": fill()
    if completion == "xx":
        child = os.fork()
        if child == 0: fill()
        return os.waitpid(child, 0)[1]
    return 0
""")
    results, _ = make_calls({"shares": RewardSpec(path=f"{file}:score", timeout=30.0)}, 4, memory_gib=0.2, max_failure_rate=1.0)
    assert [result.reward for result in results] == [0.0, None, 9.0, 0.0]  # 9: SIGKILL
    assert results[1].components["shares"].detail == "its worker process used more memory than rewarding.memory_gib=0.2 allows"


def test_an_error_in_a_thread_of_an_earlier_call_is_not_blamed_on_a_later_one(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import threading, time
def score(completion):
    if not completion:
        threading.Timer(0.1, lambda: 1 / 0).start()
    time.sleep(0.2 if len(completion) == 1 else 0)
    return len(completion)
""")
    results, _ = make_calls({"late": RewardSpec(path=f"{file}:score")}, 5)
    assert [result.reward for result in results] == [0.0, 1.0, 2.0, 3.0, 4.0]
