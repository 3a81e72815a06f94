"""A server on this machine that fails, stalls, redirects and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def run_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Server(ThreadingHTTPServer):
    """Scores by length after `takes` seconds; says 503 to the first `failures` requests; remembers all."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be taken: past it the kernel makes a client try again a second later
    takes = 0.1

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, Any], float]] = []
        self.keys: set[str | None] = set()
        self.redirect = ""  # where the paths /redirect/STATUS lead
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
        time.sleep(self.server.takes)
        answer: Any = {"score": float(len(body.get("completion", ""))), "seen": 1}
        if self.path.endswith("/chat/completions"):
            said = body["messages"][0]["content"]
            answer = {"choices": [{"message": {"content": "no idea" if "riddle" in said else f"Fine. Score: {said.count('good') * 5}"}}]}
            if "saying " in said:  # the exact reply
                answer["choices"][0]["message"]["content"] = said.partition("saying ")[2].partition(";")[0]
        status = 503 if failing else 422 if body.get("completion") == "bad" else 200
        if self.path.startswith("/redirect/"):
            status = int(self.path.split("/")[2])
        with self.server.lock:
            self.server.at_once -= 1
        with contextlib.suppress(OSError):  # the client gave up
            self.send_response(status)
            if self.server.redirect:
                self.send_header("Location", self.server.redirect)
            self.send_header("Set-Cookie", "session=secret")
            self.end_headers()
            self.wfile.write(json.dumps(answer if status == 200 else "no such thing").encode())

    def log_message(self, *_: Any) -> None:
        pass
