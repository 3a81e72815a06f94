"""A teacher behind a server with vLLM's form of OpenAI's completions API: prompts go there as token ids, with `prompt_logprobs`.

Such a server returns {id: {logprob, rank, decoded_token}}, at temperature 1, for each token of a prompt but the first. The ids of a text
come back in the same way, so that its tokenizer can be compared with the policy's. Left out: asking while other samples are sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential
from torch import Tensor

from rlkit.errors import RunFailed, UserError
from rlkit.ops.masking import pad_rows
from rlkit.types import Sample

TOGETHER = 64  # requests; a server puts them into batches of its own
TRIES, FIRST_TRIES = 8, 2  # of a request during a run, about two minutes; at its start a server is there or not
PAUSES = wait_random_exponential(multiplier=0.5, min=0.25, max=30.0)  # seconds
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # seconds; a long prompt may wait behind others
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)  # may be gone a moment later
NO_PROXY = ("all://localhost", "all://127.0.0.1", "all://[::1]")
ERROR_CHARACTERS = 300  # of an answer that is shown in a message


class _TryAgain(Exception):
    """This try failed in a way that may be gone a moment later."""


class _Refused(Exception):
    """The server gave an answer that another try will not change."""


@dataclass(frozen=True)
class ServedModel:
    """`context`: the most tokens of a request, where the server says."""

    name: str
    context: int | None


class TeacherServer:
    """Log-probs by the model of a server. url: up to /v1; shown: as messages show it, without credentials."""

    def __init__(self, url: str, shown: str, api_key: str | None = None) -> None:
        self._url, self._where = url.rstrip("/"), f"model.teacher.url {shown}"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=TOGETHER)
        self._client = httpx.Client(timeout=TIMEOUT, limits=limits, headers=headers, mounts=dict.fromkeys(NO_PROXY))
        self.model: ServedModel | None = None

    def find_model(self) -> ServedModel:
        """The first model that it serves. Raises UserError where it cannot be asked."""
        with self._explain_start():
            found = self._ask("GET", "/models", None, FIRST_TRIES)
            first = read_part(found, lambda answer: answer["data"][0])
            context = first.get("max_model_len")
            self.model = ServedModel(str(read_part(first, lambda model: model["id"])), context if isinstance(context, int) else None)
        return self.model

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text as its tokenizer reads it, without the first id. Raises UserError where they cannot be had."""

        def ask(text: str) -> list[int]:
            entries = self._score({"prompt": text, "add_special_tokens": False}, FIRST_TRIES)
            return [int(next(iter(entry))) for entry in entries[1:]]

        with self._explain_start():
            return self._map(ask, texts)

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        """As of Scores, with entropies of 0: a server does not return them. Raises RunFailed where it gives no usable answer."""
        try:
            rows = self._map(self._score_sample, samples)
        except (_Refused, RetryError) as error:
            raise RunFailed(
                f"{explain_failure(self._where, error)}; once it answers, the same command goes on from the last checkpoint"
            ) from None
        grid = pad_rows(rows, width, 0.0)  # [B, width]
        return grid, torch.zeros_like(grid)

    def offload(self) -> None: ...  # it is on no device of this run

    def reload(self) -> None: ...

    def _score_sample(self, sample: Sample) -> Tensor:
        """[L] float32, 0 where a token does not count."""
        ids = [*sample.prompt, *sample.tokens.tolist()]
        entries = self._score({"prompt": ids}, TRIES)[len(sample.prompt) :]
        written = zip(entries, ids[len(sample.prompt) :], sample.mask.tolist(), strict=True)
        values = read_part(written, lambda parts: [float(own[str(token)]["logprob"]) if counts else 0.0 for own, token, counts in parts])
        if not all(map(math.isfinite, values)):
            raise _Refused("it returns log-probs that are not finite")
        return torch.tensor(values, dtype=torch.float32)

    def _score(self, prompt: Mapping[str, Any], tries: int) -> list[Any]:
        """`prompt_logprobs` of one prompt, an entry a token."""
        assert self.model is not None, "it is found before it is asked"
        body = {**prompt, "model": self.model.name, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answer = self._ask("POST", "/completions", body, tries)
        entries = read_part(answer, lambda found: found["choices"][0]["prompt_logprobs"])
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) and entry for entry in entries[1:]):
            raise _Refused("it returns no prompt_logprobs, which are a part of vLLM's API; serve the teacher with `vllm serve`")
        return entries

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, tries: int) -> Any:
        """The JSON answer. Raises RetryError after so many tries, and _Refused."""
        for attempt in Retrying(stop=stop_after_attempt(tries), wait=PAUSES, retry=retry_if_exception_type(_TryAgain)):
            with attempt:
                return self._send(method, path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            answer = self._client.request(method, self._url + path, json=body)
        except httpx.TransportError as error:
            raise _TryAgain(str(error) or type(error).__name__) from None
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise _Refused(str(error)) from None
        if answer.status_code in RETRY_STATUSES:
            raise _TryAgain(f"it answered {answer.status_code}: {answer.text[:ERROR_CHARACTERS].strip()}")
        if not answer.is_success:
            raise _Refused(f"it answered {answer.status_code}: {answer.text[:ERROR_CHARACTERS].strip()}")
        return read_part(answer, lambda given: given.json())

    @staticmethod
    def _map(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(work, items))

    @contextmanager
    def _explain_start(self) -> Iterator[None]:
        try:
            yield
        except (_Refused, RetryError) as error:
            raise UserError(
                f"{explain_failure(self._where, error)}; start the teacher there (vllm serve MODEL), wait until it answers, and give its "
                "address up to /v1, or load it here with model.teacher.path"
            ) from None


def read_part(answer: Any, part: Callable[[Any], Any]) -> Any:
    """A part of an answer. Raises _Refused where it is of another form."""
    try:
        return part(answer)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _Refused(f"its answer is not that of a completions API ({type(error).__name__}: {error})") from None


def explain_failure(where: str, error: _Refused | RetryError) -> str:
    """Why a server could not be used."""
    if isinstance(error, RetryError):
        return f"{where} cannot be asked: {error.last_attempt.exception()} (tries: {error.last_attempt.attempt_number})"
    return f"{where}: {error}"
