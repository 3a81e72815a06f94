"""Rewards that ask a server, with a real one on this machine that fails, stalls and limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlkit.rewarding import http, worker
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import OutcomeKind
from rlkit.rewarding.spec import RewardSpec
from tests.rewarding.conftest import score_all
from tests.rewarding.settings import make_settings
from tests.rewards.servers import Server, run_server


@pytest.fixture
def server() -> Iterator[Server]:
    with run_server() as server:
        yield server


def test_remote_gets_all_columns_and_asks_in_parallel(server: Server) -> None:
    items = [{"prompt": "p", "completion": "x" * n, "level": n} for n in range(24)]
    started = time.monotonic()
    results = score_all({"remote": RewardSpec(path="remote", args={"url": server.url})}, items)
    assert [result.reward for result in results] == [float(n) for n in range(24)]
    assert results[0].metrics == {"remote/seen": 1.0}
    assert sorted(body["level"] for _, body, _ in server.seen) == list(range(24))
    assert server.most_at_once > 2 and time.monotonic() - started < 60


def test_remote_tries_again_but_not_where_it_is_refused(server: Server) -> None:
    server.failures = 2
    items = [{"prompt": "p", "completion": "good"}, {"prompt": "p", "completion": "bad"}]
    results = score_all({"remote": RewardSpec(path="remote", args={"url": server.url})}, items, max_failure_rate=1.0)
    assert results[0].reward == 4.0
    assert results[1].components["remote"].kind is OutcomeKind.ERROR
    assert "answered 422" in results[1].components["remote"].detail
    assert len(server.seen) == 4  # two refusals for a moment, then one answer each


def test_a_worker_asks_for_all_its_samples_at_once(server: Server) -> None:
    server.takes = 1.0
    items = [{"prompt": "p", "completion": "x" * n} for n in range(33)]
    # 32 at once and the one that came first: 2 s of the server's. Six at a time would wait for 6 s, and the last ones would time out.
    results = score_all({"remote": RewardSpec(path="remote", args={"url": server.url})}, items, workers=1, timeout=5.0)
    assert [result.reward for result in results] == [float(n) for n in range(33)]
    assert 30 <= server.most_at_once <= 32


def test_a_request_ends_at_the_timeout_of_its_sample(server: Server) -> None:
    server.takes = 30.0

    async def give_up() -> None:
        worker.CALL_DEADLINE.set(time.monotonic() + 0.3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.post(server.url, {"completion": "slow"}), 0.3)
        await asyncio.sleep(0)  # the socket is closed in the next round of the loop

    asyncio.run(give_up())
    server.takes = 0.0
    assert {connection.status for connection in psutil.Process().net_connections("tcp") if is_to(server, connection)} <= {"FIN_WAIT2"}


def is_to(server: Server, connection: Any) -> bool:
    return bool(connection.raddr) and connection.raddr.port == server.server_address[1]


def post(url: str) -> Any:
    return asyncio.run(http.post(url, {"completion": "good", "url": url}, {"Authorization": "Bearer secret"}, tries=2))


def test_a_redirect_to_another_server_is_not_followed(server: Server) -> None:
    with run_server() as other:
        for status in (301, 302, 303, 307, 308):
            server.redirect = f"{other.url}/elsewhere?token=secret"
            with pytest.raises(http.RequestFailed, match=rf"redirects to another server, {other.url}/elsewhere, which gets nothing"):
                post(f"{server.url}/redirect/{status}")
        assert other.seen == []


def test_a_redirect_within_a_server_stays_a_post_or_fails(server: Server) -> None:
    """The server answers no GET at all."""
    server.redirect = "/there"
    for status in (307, 308):
        assert post(f"{server.url}/redirect/{status}") == {"score": 4.0, "seen": 1}
    assert [path for path, _, _ in server.seen[1::2]] == ["/there"] * 2 and server.keys == {"Bearer secret"}
    for status in (301, 302, 303):
        with pytest.raises(http.RequestFailed, match=rf"answered {status}, which makes a GET of a POST; set url to {server.url}/there"):
            post(f"{server.url}/redirect/{status}")
    server.redirect = "/redirect/307/again"
    with pytest.raises(http.RequestFailed, match="redirects without end"):
        post(f"{server.url}/redirect/307/again")


def test_no_message_shows_credentials_of_an_address() -> None:
    with pytest.raises(http.RequestFailed) as caught:
        post("http://user:hidden@127.0.0.1:9/path?key=hidden")
    assert str(caught.value) == "http://127.0.0.1:9/path: Connection refused (tried 2 times)"


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_on_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert post(server.url) == {"score": 4.0, "seen": 1}


def test_no_time_for_another_try_is_reported_with_the_reason(server: Server) -> None:
    server.failures = 9
    spec = {"remote": RewardSpec(path="remote", args={"url": server.url}, timeout=2.0)}  # tries after about 0, 0.5 and 1.3 s
    [result] = score_all(spec, [{"prompt": "p", "completion": "good"}], max_failure_rate=1.0)
    outcome = result.components["remote"]
    assert outcome.kind is OutcomeKind.ERROR and "answered 503" in outcome.detail and outcome.seconds < 2.0
    assert f"(tries: {len(server.seen)} of 5, the reward's timeout leaves no time for another)" in outcome.detail


def test_nobody_listening_is_an_error_and_no_score_of_zero() -> None:
    spec = {"remote": RewardSpec(path="remote", args={"url": "http://127.0.0.1:9", "tries": 2})}
    [result] = score_all(spec, [{"prompt": "p", "completion": "c"}])
    assert result.reward is None
    assert "Connection refused" in result.components["remote"].detail and "(tried 2 times)" in result.components["remote"].detail


def test_rate_limit(server: Server) -> None:
    spec = {"remote": RewardSpec(path="remote", args={"url": server.url, "per_second": 10})}
    with RewardClient(spec, make_settings(workers=1)) as client:
        for first, count in ((0, 1), (1, 10)):  # the second time the worker is there and connected
            begun = time.monotonic()
            for number in range(first, first + count):
                client.submit(number, {"prompt": "p", "completion": "x" * number})
            client.collect(range(first, first + count))
    assert max(when for _, _, when in server.seen) - begun >= 0.9  # nine pauses of a tenth of a second


def test_same_question_is_asked_once_and_kept_over_runs(server: Server, tmp_path: Path) -> None:
    spec = {"remote": RewardSpec(path="remote", args={"url": server.url, "cache": str(tmp_path)})}
    for _ in range(2):  # ten at once: nine wait for the answer of the first
        assert [v.reward for v in score_all(spec, [{"prompt": "p", "completion": "abc"}] * 10, workers=1)] == [3.0] * 10
    assert len(server.seen) == 1


def test_llm_judge(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    spec = {"judge": RewardSpec(path="llm_judge", args={"url": f"{server.url}/v1", "model": "m", "key": "MY_KEY"})}
    prompt = [{"role": "user", "content": "Say something."}]
    items = [{"prompt": prompt, "completion": said, "answer": "a"} for said in ("good", "good good", "bad", "a riddle {not a field}")]
    results = score_all(spec, items, max_failure_rate=1.0, env=("MY_KEY",))
    assert [result.reward for result in results] == [0.5, 1.0, 0.0, None]
    assert "m gave no score: 'no idea'" in results[3].components["judge"].detail
    assert server.seen[0][0] == "/v1/chat/completions" and server.keys == {"Bearer secret"}
    assert server.seen[0][1]["temperature"] == 0.0 and "Say something." in server.seen[0][1]["messages"][0]["content"]


@pytest.mark.parametrize("path", ["llm_judge", "remote"])
def test_no_row_chooses_where_a_question_and_a_key_go(server: Server, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    model = {"model": "m", "key": "MY_KEY"} if path == "llm_judge" else {}
    spec = {"judge": RewardSpec(path=path, args={"url": f"{server.url}/mine", **model})}
    row = {"url": f"{server.url}/row", "key": "HOME", "model": "row", "template": "row", "best": 1, "tries": 0, "cache": "/row"}
    score_all(spec, [{"prompt": "p", "completion": "good", **row}], env=("MY_KEY",))
    [(address, body, _)] = server.seen
    assert address.startswith("/mine") and "/row" not in json.dumps(body)
    assert server.keys == ({"Bearer secret"} if model else {None}) and (path == "remote" or body["model"] == "m")


def test_llm_judge_reads_the_number_after_score(server: Server) -> None:
    said = {
        "Score: -3": 0.0,
        "Score (0 to 10): 7": 0.7,
        "**Score:** 6/10": 0.6,
        "Score: **8.5**": 0.85,
        "the score is high\nscore = 4": 0.4,
    }
    spec = {"judge": RewardSpec(path="llm_judge", args={"url": server.url, "model": "m"})}
    results = score_all(spec, [{"prompt": "p", "completion": f"saying {line};"} for line in said], workers=1)
    assert [result.reward for result in results] == pytest.approx(list(said.values()))
