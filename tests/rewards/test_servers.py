"""Rewards that ask a server, with a real one on this machine that fails, stalls and limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlkit.rewarding import OutcomeKind, RewardSpec
from tests.rewarding.conftest import judge_all


class Server(ThreadingHTTPServer):
    """Scores by length; says 503 to the first `failures` requests; remembers all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, Any], float]] = []
        self.keys: set[str | None] = set()
        self.failures, self.at_once, self.most_at_once = 0, 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, body, time.monotonic()))
            self.server.keys.add(self.headers["Authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            failing = self.server.failures > 0
            self.server.failures -= 1
        time.sleep(0.1)
        answer: Any = {"score": float(len(body.get("completion", ""))), "seen": 1}
        if self.path.endswith("/chat/completions"):
            said = body["messages"][0]["content"]
            answer = {"choices": [{"message": {"content": "no idea" if "riddle" in said else f"Fine. Score: {said.count('good') * 5}"}}]}
        status = 503 if failing else 422 if body.get("completion") == "bad" else 200
        with self.server.lock:
            self.server.at_once -= 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer if status == 200 else "no such thing").encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_remote_gets_all_columns_and_asks_in_parallel(server: Server) -> None:
    items = [{"prompt": "p", "completion": "x" * n, "level": n} for n in range(24)]
    started = time.monotonic()
    verdicts = judge_all([RewardSpec("remote", "remote", args={"url": server.url})], items)
    assert [verdict.reward for verdict in verdicts] == [float(n) for n in range(24)]
    assert verdicts[0].metrics == {"remote/seen": 1.0}
    assert sorted(body["level"] for _, body, _ in server.seen) == list(range(24))
    assert server.most_at_once > 2 and time.monotonic() - started < 60


def test_remote_tries_again_but_not_where_it_is_refused(server: Server) -> None:
    server.failures = 2
    items = [{"prompt": "p", "completion": "good"}, {"prompt": "p", "completion": "bad"}]
    verdicts = judge_all([RewardSpec("remote", "remote", args={"url": server.url})], items, max_failure_rate=1.0)
    assert verdicts[0].reward == 4.0
    assert verdicts[1].parts["remote"].kind is OutcomeKind.ERROR
    assert "answered 422" in verdicts[1].parts["remote"].detail
    assert len(server.seen) == 4  # two refusals for a moment, then one answer each


def test_nobody_listening_is_an_error_and_no_score_of_zero() -> None:
    spec = RewardSpec("remote", "remote", args={"url": "http://127.0.0.1:9", "tries": 2})
    [verdict] = judge_all([spec], [{"prompt": "p", "completion": "c"}])
    assert verdict.reward is None
    assert "Connection refused" in verdict.parts["remote"].detail and "(tried 2 times)" in verdict.parts["remote"].detail


def test_rate_limit(server: Server) -> None:
    items = [{"prompt": "p", "completion": "x" * n} for n in range(10)]
    judge_all([RewardSpec("remote", "remote", args={"url": server.url, "per_second": 10})], items, workers=1)
    times = sorted(when for _, _, when in server.seen)
    assert times[-1] - times[0] > 0.7  # nine pauses of a tenth of a second, less what the machine shifted


def test_same_question_is_asked_once_and_kept_over_runs(server: Server, tmp_path: Path) -> None:
    spec = RewardSpec("remote", "remote", args={"url": server.url, "cache": str(tmp_path)})
    for _ in range(2):
        assert judge_all([spec], [{"prompt": "p", "completion": "abc"}])[0].reward == 3.0
    assert len(server.seen) == 1


def test_llm_judge(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    spec = RewardSpec("judge", "llm_judge", args={"url": f"{server.url}/v1", "model": "m", "key": "MY_KEY"})
    prompt = [{"role": "user", "content": "Say something."}]
    items = [{"prompt": prompt, "completion": said, "answer": "a"} for said in ("good", "good good", "bad", "a riddle {not a field}")]
    verdicts = judge_all([spec], items, max_failure_rate=1.0, env=("MY_KEY",))
    assert [verdict.reward for verdict in verdicts] == [0.5, 1.0, 0.0, None]
    assert "m gave no score: 'no idea'" in verdicts[3].parts["judge"].detail
    assert server.seen[0][0] == "/v1/chat/completions" and server.keys == {"Bearer secret"}
    assert server.seen[0][1]["temperature"] == 0.0 and "Say something." in server.seen[0][1]["messages"][0]["content"]
