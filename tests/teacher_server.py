"""A server with the part of vLLM's completions API that a teacher needs, which transformers computes: prompts as token ids or text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Served(ThreadingHTTPServer):
    """On a free port of this machine, in a thread of this process, within `with`. failures: answers of 503 that come first."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, context: int = 2048) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        self.context, self.failures, self.lock = context, 0, threading.Lock()
        self.change: Callable[[list[Any]], Any] = lambda entries: entries
        self.seen: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> Served:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def score(self, prompt: list[int] | str) -> list[Any]:
        """prompt_logprobs as vLLM returns them: nothing for the first token."""
        import torch

        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids if isinstance(prompt, str) else prompt
        with self.lock, torch.no_grad():
            logs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)
        said = [logs[place, token].item() for place, token in enumerate(ids[1:])]
        return [None, *({str(t): {"logprob": x, "rank": 1, "decoded_token": "?"}} for t, x in zip(ids[1:], said, strict=True))]


class Handler(BaseHTTPRequestHandler):
    server: Served
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "big", "max_model_len": self.server.context}]} if self.path == "/v1/models" else None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            self.server.keys.add(self.headers["Authorization"])
            failing, self.server.failures = self.server.failures > 0, self.server.failures - 1
        if failing:
            self.answer(None, 503)
            return
        right = self.path == "/v1/completions" and body["model"] == "big" and body["prompt_logprobs"] == 0 and body["max_tokens"] == 1
        entries = self.server.change(self.server.score(body["prompt"])) if right else None
        self.answer({"choices": [{"text": "x", "prompt_logprobs": entries}]} if right else None)

    def answer(self, found: Any, status: int = 200) -> None:
        content = json.dumps(found if found is not None else "no such thing").encode()
        self.send_response(status if found is not None or status != 200 else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
