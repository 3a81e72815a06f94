"""What many tests share: a tiny random model, and runs of the real command in processes of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest

from tests import fork_server

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("tests/launch", "tests/test_mutants.py", "tests/test_setup.py", "tests/runs/")  # the longest, which none waits for at the end
GRACE = 5.0  # seconds that the other processes of a run have once one has failed
_socket: Path | None = None


def scope(nodeid: str) -> str:
    """The tests that one worker runs: those of a file, and all those that start hosts."""
    return "tests/launch" if nodeid.startswith("tests/launch/") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return ByScope(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((number for number, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST)))


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """What the tests of a module leave in the environment ends with them: engines and launchers take and give places among ranks."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 50,000 random weights with the built-in tokenizer and chat template, in float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlkit.builtin.model import build_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # vLLM's attention on a CPU takes no smaller one
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def even_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its like with rows of 64 and 128: a CPU takes back no others from 4 bits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("even") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(tiny_model)
    config.update({"hidden_size": 64, "intermediate_size": 128})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Ended:
    """A command that came to its end."""

    code: int
    out: str
    err: str


PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # set here by tests of engines


def environment(**more: str) -> dict[str, str]:
    """Of a child: this checkout's rlkit, no colours, no place among the ranks of another process."""
    own = {name: value for name, value in os.environ.items() if name not in PLACE}
    return {**own, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **more}


def command(*arguments: str, program: str | None = None, ranks: int = 1) -> list[str]:
    """`python -m rlkit.run`, or a program of tests/programs in its place, alone or under torchrun."""
    start = ["-m", "rlkit.run"] if program is None else [str(ROOT / "tests" / "programs" / program)]
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *many, *start, *arguments]


def run(
    *arguments: str,
    program: str | None = None,
    module: str = "rlkit.run",
    ranks: int = 1,
    cwd: Path | None = None,
    timeout: float = 240,
    cold: bool = False,
    **more: str,
) -> Ended:
    """Runs to the end, at most `timeout` seconds; `more` goes into its environment. `cold`: in a new Python, not forked from one that has
    imported everything."""
    env = environment(**more)
    if cold:
        words = command(*arguments, program=program, ranks=ranks)
        done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)
        return Ended(done.returncode, done.stdout, done.stderr)
    path = str(ROOT / "tests" / "programs" / program) if program else f"-m {module}"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        forks = [
            fork_server.Fork(fork_socket(), path, list(arguments), place, cwd, out.fileno(), err.fileno()) for place in places(env, ranks)
        ]
        try:
            code = wait_for_all(forks, timeout)
        except subprocess.TimeoutExpired as late:
            late.add_note(read_all(out) + read_all(err))
            raise
        return Ended(code, read_all(out), read_all(err))


def read_all(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


def places(env: dict[str, str], ranks: int) -> list[dict[str, str]]:
    """The environment of each of so many processes that find each other."""
    if ranks == 1:
        return [env]
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [env | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def free_port() -> int:
    """Between Ray's ports of workers and those that the kernel deals: of these, any connection of another test may take one first."""
    while True:
        port = secrets.choice(range(20000, 32768))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def wait_for_all(forks: list[fork_server.Fork], seconds: float) -> int:
    """0, or the exit code of the first that failed, with the others ended GRACE seconds later."""
    until = time.monotonic() + seconds
    failed: fork_server.Fork | None = None
    try:
        while any(fork.wait(0.02 if len(forks) > 1 else until - time.monotonic()) is None for fork in forks):
            if failed is None and (failed := next((fork for fork in forks if fork.returncode), None)):
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:
                break
        failed = failed or next((fork for fork in forks if fork.returncode), None)
        if failed is None and any(fork.returncode is None for fork in forks):
            raise subprocess.TimeoutExpired("a forked run", seconds)
        return failed.returncode or 0 if failed else 0
    finally:
        for fork in forks:
            fork.kill()


def fork_socket() -> Path:
    """Of the fork server that all workers of this test session share."""
    global _socket
    if _socket is None:
        worker = "PYTEST_XDIST_WORKER" in os.environ
        folder = Path(tempfile.gettempdir(), f"rlkit-forks-{os.environ['PYTEST_XDIST_TESTRUNUID'] if worker else os.getpid()}")
        folder.mkdir(exist_ok=True)
        _socket = fork_server.connect(folder, os.getppid() if worker else os.getpid())
    return _socket


@pytest.fixture(scope="session")
def small(tiny_model: Path) -> list[str]:
    """The recipe grpo_math in small: a random model, a reward that random text can win, and the engine that starts fastest."""
    reward = Path(__file__).parent / "programs" / "toy_reward.py"
    return [
        "recipe=grpo_math",
        f"model.path={tiny_model}",
        "steps=4",
        "prompts_per_step=4",
        "samples_per_prompt=4",
        "max_completion_tokens=16",
        "tokens_per_micro_batch=256",
        "optim.lr=3e-3",
        "eval.every=2",
        "eval.problems=8",
        "checkpoint.every=2",
        f"rewards.accuracy.path={reward}:letters",
        "engine.rollout=hf",
    ]


@pytest.fixture(scope="session")
def small_vllm(small: list[str]) -> list[str]:
    """The same with vLLM, for what is a fact about vLLM: it takes three times as long."""
    return [word for word in small if word != "engine.rollout=hf"]


@pytest.fixture(scope="session")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real GSM8K rows; where they are not, one with 40 rows of that form."""
    beside = ROOT.parent / "shared" / "data" / "gsm8k"
    folder = Path(os.environ.get("RLKIT_GSM8K", beside))
    if (folder / "train.jsonl").exists():
        return folder
    warnings.warn(f"no GSM8K rows in {folder} (RLKIT_GSM8K): 40 rows of that form stand in for them", stacklevel=1)
    folder = tmp_path_factory.mktemp("gsm8k")
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(ROOT / "tests" / "data" / "gsm8k_like.jsonl", folder / name)
    return folder
