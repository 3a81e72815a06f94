"""A teacher behind a server says what the same model says here; what is no such server is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tenacity import wait_none

from rlkit.engines import teacher_server
from rlkit.engines.reference import ReferenceModel
from rlkit.engines.teacher_server import TeacherServer
from rlkit.errors import RunFailed, UserError
from rlkit.types import Key, Sample, Stop
from tests.conftest import free_port
from tests.teacher_server import Served

WIDTH = 12


@pytest.fixture(scope="module")
def shared(tiny_model: Path) -> Iterator[Served]:
    with Served(tiny_model) as server:
        yield server


@pytest.fixture
def server(shared: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(teacher_server, "PAUSES", wait_none())
    shared.failures, shared.change = 0, lambda entries: entries
    shared.seen.clear()
    shared.keys.clear()
    return shared


def ask(server: Served, **more: Any) -> TeacherServer:
    teacher = TeacherServer(server.url, server.url, **more)
    teacher.find_model()
    return teacher


def samples() -> list[Sample]:
    """Ragged, with a hole that an environment wrote."""
    random = torch.Generator().manual_seed(3)
    found = []
    for number, (before, length) in enumerate([(1, 1), (5, 12), (9, 4), (9, 7)]):
        ids = torch.randint(0, 250, (before + length,), generator=random)
        mask = torch.arange(length) != 2 if number == 1 else torch.ones(length, dtype=torch.bool)
        prompt = tuple(ids[:before].tolist())
        key, nothing = Key(number, 0, 0), torch.zeros(length)
        found.append(Sample(key, prompt, ids[before:], mask, nothing, nothing.int(), Stop.EOS, ""))
    return found


def test_it_says_what_the_model_says_here(server: Served, tiny_model: Path) -> None:
    here = ReferenceModel(str(tiny_model), torch.float32, temperature=1.0, device=torch.device("cpu"), offline=True)
    wanted, _ = here.logprobs(samples(), WIDTH)
    found, _ = ask(server, api_key="secret").logprobs(samples(), WIDTH)
    assert found.shape == wanted.shape == (4, WIDTH) and (found - wanted).abs().max() < 1e-4 and wanted.min() < -1.0
    assert found[1, 2] == 0.0 == found[0, 1:].abs().max() and all(isinstance(body["prompt"], list) for body in server.seen)
    assert server.keys == {"Bearer secret"}
    assert ask(server).logprobs([], WIDTH)[0].shape == (0, WIDTH)


def test_it_returns_the_ids_of_texts_but_the_first(server: Served) -> None:
    teacher = ask(server)
    assert teacher.model is not None and (teacher.model.name, teacher.model.context) == ("big", 2048)
    assert teacher.tokenize(["hello", "1 + 1"]) == [server.tokenizer(text).input_ids[1:] for text in ("hello", "1 + 1")]
    assert server.seen[0]["add_special_tokens"] is False


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: Served) -> None:
    teacher = ask(server)
    server.failures = 3
    assert teacher.logprobs(samples()[:1], WIDTH)[0].shape == (1, WIDTH)
    server.failures = 1000
    with pytest.raises(RunFailed, match=r"cannot be asked: it answered 503: .* \(tries: 8\); once it answers, the same command goes on"):
        teacher.logprobs(samples()[:1], WIDTH)


ODD: dict[str, tuple[Any, str]] = {
    "none": (lambda entries: None, "it returns no prompt_logprobs, which are a part of vLLM's API"),
    "other tokens": (
        lambda entries: [None, *({"999999": {"logprob": -1.0}} for _ in entries[1:])],
        "its answer is not that of a completions API",
    ),
    "too few": (lambda entries: entries[:-1], "its answer is not that of a completions API"),
    "no numbers": (lambda entries: [None, *({key: {"logprob": float("nan")} for key in own} for own in entries[1:])], "not finite"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_answer_that_is_none_ends_the_run(server: Served, case: str) -> None:
    teacher = ask(server)
    server.change, message = ODD[case]
    with pytest.raises(RunFailed, match=message):
        teacher.logprobs(samples()[1:2], WIDTH)


def test_what_is_no_such_server_is_refused_at_the_start(server: Served) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(
        UserError, match=r"model\.teacher\.url .* cannot be asked: .*refused.*; start the teacher there \(vllm serve MODEL\)"
    ):
        TeacherServer(nobody, nobody).find_model()
    with pytest.raises(UserError, match=r"it answered 404: .*; start the teacher there"):
        TeacherServer(server.url.removesuffix("/v1"), "shown").find_model()
    teacher = ask(server)
    server.change = lambda entries: None
    with pytest.raises(UserError, match="it returns no prompt_logprobs"):
        teacher.tokenize(["hello"])
