"""The reward client as the trainer uses it: streaming, order, determinism, isolation, limits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import RunFailed, UserError
from rlkit.metrics import metric_values
from rlkit.rewarding import outcome, supervision
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.spec import RewardSpec
from rlkit.rewarding.supervisor import TOGETHER_SECONDS, WorkQueue
from tests.conftest import run
from tests.rewarding.settings import make_settings

from .conftest import TORTURE, score_all


def items(count: int) -> list[dict[str, Any]]:
    return [{"prompt": "p", "completion": f"so \\boxed{{{n % 7}}}", "answer": str(n % 3)} for n in range(count)]


def test_verdicts_do_not_depend_on_order_or_number_of_workers(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import asyncio, random
def noisy(completion): return random.random()
async def waiting(completion):
    first = random.random()
    await asyncio.sleep(first / 20)  # meanwhile the others draw
    return first + random.random()
def ranked(completions): return [float(n) for n in range(len(completions))]
""")
    rewards = {
        "accuracy": RewardSpec(path="accuracy"),
        **{name: RewardSpec(path=f"{file}:{name}") for name in ("noisy", "waiting", "ranked")},
    }
    keys = [(group, sample) for group in range(10) for sample in range(4)]
    seen = []
    for workers, seed in ((1, None), (3, 1), (2, 2)):
        order = list(range(40))
        if seed is not None:
            random.Random(seed).shuffle(order)
        with RewardClient(rewards, make_settings(workers=workers)) as client:
            for number in order:
                client.submit(keys[number], items(40)[number], keys[number][0], 4)
            seen.append([(key, result.reward) for key, result in client.collect(keys).items()])
    assert seen[0] == seen[1] == seen[2]
    assert [key for key, _ in seen[0]] == keys


def test_a_reward_on_request_scores_only_what_is_submitted_for_it(write_rewards: Callable[[str], str]) -> None:
    """It fails on all other samples, which nobody notices, and the rewards of these samples do not see the others."""
    file = write_rewards("""
def graded(completion): return 1.0 if completion == "own" else 1 / 0
def ranked(completions): return [2.0 for completion in completions]
""")
    rewards = {"accuracy": RewardSpec(path="accuracy"), "ranked": RewardSpec(path=f"{file}:ranked")}
    rewards["graded"] = RewardSpec(path=f"{file}:graded")
    with RewardClient(rewards, make_settings(max_failure_rate=0.0), on_request=["graded"]) as client:
        for number in range(2):
            client.submit(number, items(1)[0], "step", 2)
        client.submit("own", {"prompt": "p", "completion": "own"}, "set", 1, only=["graded"])
        found = client.collect([0, 1, "own"])
        metrics = metric_values(client.pop_metrics())
    assert [result.reward for result in found.values()] == [3.0, 3.0, 1.0]
    skipped = {key: [name for name, one in result.components.items() if one.kind is OutcomeKind.SKIPPED] for key, result in found.items()}
    assert skipped == {0: ["graded"], 1: ["graded"], "own": ["accuracy", "ranked"]}
    assert [metrics[f"rewards/{name}/failure_rate"] for name in rewards] == [0.0] * 3


def is_scored(client: RewardClient, key: str) -> bool:
    client._advance()
    return len(client._outcomes[key]) == len(client._rewards)


def test_samples_are_scored_while_others_are_still_to_come() -> None:
    with RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings()) as client:
        client.submit("early", items(1)[0])
        assert not is_scored(client, "early")  # the workers have just been started
        until = time.monotonic() + 60
        while not is_scored(client, "early") and time.monotonic() < until:
            time.sleep(0.01)
        assert is_scored(client, "early")
        client.submit("late", items(2)[1])
        assert [result.reward for result in client.collect(["late", "early"]).values()] == [1.0, 1.0]


def test_quick_calls_go_together_twice_as_many_each_time_until_one_is_slow() -> None:
    quick, slow = (Outcome(OutcomeKind.SCORE, 1.0, seconds=seconds) for seconds in (1e-5, 0.5))
    work = WorkQueue([WorkerReward("a", "accuracy", timeout=10.0), WorkerReward("b", "accuracy", timeout=10.0)])
    work.put([(number, 0, [b"x"]) for number in range(200)])
    seen: list[int] = []
    for outcomes in ([quick], [quick] * 2, [quick] * 4, [quick] * 8, [quick] * 16, [quick] * 32, [quick, slow], [quick], None, [slow]):
        unit = work.take()
        seen.append(len(unit.parts))
        assert unit.timeout == (10.0 if len(unit.parts) == 1 else TOGETHER_SECONDS) and unit.calls == [[b"x"]] * len(unit.parts)
        work.record_result(0, outcomes)
    assert seen == [1, 2, 4, 8, 16, 32, 32, 1, 2, 1]
    work.put([(200, 1, [b"y", b"z"])])
    left = [work.take() for _ in range(200 - sum(seen) + 1)]
    assert [n for unit in left for n, _ in unit.parts] == list(range(sum(seen), 201))  # none is lost, none comes twice
    assert left[-1].timeout == 20.0 and left[-1].calls == [[b"y", b"z"]]


def test_quick_samples_wait_for_each_other_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them ends the worker of a whole lump."""
    monkeypatch.setattr(outcome, "QUICK_SECONDS", 60.0)  # here, not in the supervisor: a busy machine makes a quick call slow
    words = ["x" * (n % 5) for n in range(200)]
    words[150] = "hard exit"
    with RewardClient({"tortured": RewardSpec(path=TORTURE)}, make_settings(workers=1, max_failure_rate=1.0)) as client:
        client.wait_until_ready()
        sent = []
        send = client._connection.send
        client._connection.send = lambda message: sent.append(len(message)) or send(message)  # type: ignore[method-assign, func-returns-value]
        for number, word in enumerate(words):
            client.submit(number, {"prompt": "p", "completion": word})
            if number == 20:
                client.wait(range(21))  # from here on they are known to be quick
        waiting = len(client._not_sent)
        results = client.collect(range(200))
    assert sum(sent) == 200 and sent[-6:] == [32] * 5 + [19]
    assert waiting == 19
    assert [number for number, result in results.items() if result.reward is None] == [150]
    assert all(results[number].reward == number % 5 for number in range(200) if number != 150)


def test_constructing_returns_at_once_and_imports_no_reward_here() -> None:
    code = """
import sys, time
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.settings import make_settings
started = time.monotonic()
with RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings()) as client:
    seconds = time.monotonic() - started
    client.wait_until_ready()
heavy = [name for name in ("torch", "math_verify", "sympy", "pebble", "transformers", "vllm") if name in sys.modules]
print(seconds < 0.5, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_a_group_shorter_than_announced_is_judged_at_collect(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def size(completions): return [float(len(completions))] * len(completions)\n")
    with RewardClient({"size": RewardSpec(path=f"{file}:size")}, make_settings()) as client:
        for number in range(7):
            client.submit(number, items(7)[number], number // 4, 4)
        assert [result.reward for result in client.collect(range(7)).values()] == [4.0] * 4 + [3.0] * 3


def test_workers_see_of_the_environment_what_the_recipe_lists(monkeypatch: pytest.MonkeyPatch, write_rewards: Callable[[str], str]) -> None:
    for name in ("LISTED", "SECRET_TOKEN", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    file = write_rewards("""
import os, signal, sys
def f(completion):
    return {"score": 1.0, "listed": "LISTED" in os.environ, "secret": "SECRET_TOKEN" in os.environ, "preload": "LD_PRELOAD" in os.environ,
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"] != "", "torch": "torch" in sys.modules, "pydantic": "pydantic" in sys.modules,
            "handler": signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)}
""")
    [result] = score_all({"f": RewardSpec(path=f"{file}:f")}, items(1), env=("LISTED",))
    assert {name.removeprefix("f/"): bool(value) for name, value in result.metrics.items()} == {
        "listed": True,
        "secret": False,
        "preload": False,
        "gpu": False,
        "torch": False,
        "pydantic": False,
        "handler": False,
    }


@pytest.mark.parametrize("value", ["1", None], ids=["forbidden", "allowed"])
def test_workers_leave_bytecode_only_where_they_may(
    monkeypatch: pytest.MonkeyPatch, write_rewards: Callable[[str], str], tmp_path: Path, value: str | None
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1") if value else monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    file = write_rewards("import beside\ndef f(completion): return beside.SCORE\n")
    (tmp_path / "beside.py").write_text("SCORE = 3.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    [result] = score_all({"f": RewardSpec(path=f"{file}:f")}, items(1))
    assert result.reward == 3.0
    assert (tmp_path / "__pycache__").is_dir() == (value is None)


def test_memory_and_cpu_limits(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("""
import threading
def f(completion):
    if completion == "memory": return float(len(bytearray(2**30)))
    if completion == "cpu":
        while True: pass
    return 1.0
""")
    said = [{"prompt": "p", "completion": completion} for completion in ("memory", "cpu", "fine")]
    results = score_all({"f": RewardSpec(path=f"{file}:f")}, said, memory_gib=0.5, cpu_seconds=1.0, max_failure_rate=1.0)
    assert "MemoryError" in results[0].components["f"].detail
    assert results[1].components["f"].detail == "its worker process was ended by SIGXCPU: it used up its CPU time"
    assert results[2].reward == 1.0


def test_too_many_failures_stop_the_run_with_a_file_that_shows_them_again(tmp_path: Path, write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def f(completion, answer):\n    return 1.0 / int(answer)\n")
    rows = [{"prompt": "p", "completion": "c", "answer": str(n % 10)} for n in range(40)]  # four of forty divide by zero
    with RewardClient({"f": RewardSpec(path=f"{file}:f")}, make_settings(), tmp_path) as client:
        for number, row in enumerate(rows):
            client.submit(("prompt", number), row)
        with pytest.raises(UserError) as caught:
            client.collect([("prompt", number) for number in range(40)])
    text = str(caught.value)
    assert f"rewards.f ({file}:f) failed for 4 of the last 40 samples, more than rewarding.max_failure_rate=0.05 allows" in text
    assert (
        "sample ('prompt', 0)" in text
        and "ZeroDivisionError: float division by zero" in text
        and f"rlkit reward retry {tmp_path}/f.json" in text
    )
    assert len(text.splitlines()) <= 10
    assert json.loads((tmp_path / "f.json").read_text())["items"] == [rows[0]]
    again = run("reward", "retry", str(tmp_path / "f.json"), module="rlkit.cli.main", timeout=100)
    assert again.code == 1 and "ZeroDivisionError: float division by zero" in again.out


def test_single_failures_do_not_stop_the_run_and_the_limit_survives_a_checkpoint(tmp_path: Path) -> None:
    rewards, bad = {"t": RewardSpec(path=TORTURE)}, {"prompt": "p", "completion": "raise"}
    with RewardClient(rewards, make_settings()) as client:
        for round_ in range(2):
            client.submit(round_, bad)
            assert client.collect([round_])[round_].reward is None
        state = client.state()
        assert state == {"t": "11"}
    with RewardClient(rewards, make_settings(), tmp_path) as client:
        client.restore(state)
        client.submit(0, bad)
        with pytest.raises(UserError, match="3 of the last 3"):
            client.collect([0])


def test_stats_name_rates_and_latencies(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def f(completion): return None if completion == 'n' else 1 / 0 if completion == 'e' else float(completion)\n")
    with RewardClient({"f": RewardSpec(path=f"{file}:f")}, make_settings(max_failure_rate=1.0)) as client:
        for number, completion in enumerate(["1", "0", "0", "3", "n", "e", "e", "e"]):
            client.submit(number, {"prompt": "p", "completion": completion})
        client.collect(range(8))
        stats = metric_values(client.pop_metrics())
        assert client.pop_metrics() == {}
    assert {name: value for name, value in stats.items() if not name.startswith("time/")} == {
        "rewards/f/failure_rate": 0.375,
        "rewards/f/timeout_rate": 0.0,
        "rewards/f/not_applicable_rate": 0.125,
    }
    assert 0 < stats["time/reward_p50"] <= stats["time/reward_p99"] < 10


@pytest.mark.usefixtures("nobody_left")
def test_killed_supervisor_is_reported_and_its_workers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_TEST_MARK", str(os.getpid()))
    client = RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings(env=("RLKIT_TEST_MARK",)))
    client.wait_until_ready()
    os.kill(client._supervisor.pid, 9)
    with pytest.raises(RunFailed, match=r"the reward supervisor .* is gone, exit status -9"):
        client.submit(1, items(1)[0])
        client.collect([1])
    client.close()


@pytest.mark.usefixtures("nobody_left")
def test_a_stopped_supervisor_is_reported_and_ends_with_all_it_started(
    monkeypatch: pytest.MonkeyPatch, write_rewards: Callable[[str], str]
) -> None:
    monkeypatch.setenv("RLKIT_TEST_MARK", str(os.getpid()))
    monkeypatch.setattr(supervision, "POLL_SECONDS", 0.1)
    file = write_rewards("""
import os, signal, subprocess
def f(completion):
    if completion == "stop":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os.kill(os.getppid(), signal.SIGSTOP)
    return 1.0
""")
    started = time.monotonic()
    with RewardClient({"f": RewardSpec(path=f"{file}:f")}, make_settings(env=("RLKIT_TEST_MARK",))) as client:
        client.submit(0, items(1)[0])
        client.wait([0])
        os.kill(client._supervisor.pid, signal.SIGSTOP)
        (resume := threading.Timer(0.4, client._supervisor.send_signal, (signal.SIGCONT,))).start()  # stopped for a moment only
        client.submit(1, items(1)[0])
        assert client.wait([1])[1].reward == 1.0
        resume.join()
        client.submit(2, {"prompt": "p", "completion": "stop"})
        with pytest.raises(RunFailed, match=r"the reward supervisor \(process \d+\) has been stopped by a signal \(SIGSTOP\)"):
            client.wait([2])
    assert time.monotonic() - started < 60


def test_a_supervisor_that_takes_no_work_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "SEND_SECONDS", 1)
    with RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings()) as client:
        client.wait_until_ready()
        os.kill(client._supervisor.pid, signal.SIGSTOP)
        with pytest.raises(RunFailed, match="took no work for 1 s"):
            client.submit(0, {"prompt": "p", "completion": "x" * 2**24, "answer": "1"})


def test_close_ends_all_even_where_a_fork_holds_the_connection() -> None:
    client = RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings())
    client.wait_until_ready()
    fork = os.fork()
    if fork == 0:
        time.sleep(60)
        os._exit(0)
    started = time.monotonic()
    client.close()
    client.close()  # twice does no harm
    assert time.monotonic() - started < 10
    os.kill(fork, 9)
    os.waitpid(fork, 0)


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize("after", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_close_while_workers_are_still_starting(monkeypatch: pytest.MonkeyPatch, after: float) -> None:
    monkeypatch.setenv("RLKIT_TEST_MARK", str(os.getpid()))
    client = RewardClient({"accuracy": RewardSpec(path="accuracy")}, make_settings(env=("RLKIT_TEST_MARK",)))
    time.sleep(after)
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 10


def test_overhead_of_a_sample_is_below_a_millisecond(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def f(completion): return 1.0\n")
    row = {"prompt": "p" * 1000, "completion": "c" * 4000, "answer": "1"}
    with RewardClient({"f": RewardSpec(path=f"{file}:f")}, make_settings()) as client:
        client.wait_until_ready()
        best = float("inf")
        for _ in range(5):  # the best of five: the machine may be busy
            started = time.perf_counter()
            for number in range(400):
                client.submit(number, row)
            client.collect(range(400))
            best = min(best, (time.perf_counter() - started) / 400)
    assert best < 0.001
