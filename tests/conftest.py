"""What many tests share: a tiny random model, and runs of the real command in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several workers, one runs a file's tests, and one all those that start hosts."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "launch" if nodeid.startswith("tests/launch/") else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "launch", item.path not in slow))


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

    from rlkit.builtin.model import make_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = make_tokenizer()
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


def run(*arguments: str, program: str | None = None, ranks: int = 1, cwd: Path | None = None, timeout: float = 240, **more: str) -> Ended:
    """Runs to the end, at most `timeout` seconds; `more` goes into its environment."""
    done = subprocess.run(
        command(*arguments, program=program, ranks=ranks), capture_output=True, text=True, env=environment(**more), cwd=cwd, timeout=timeout
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def small(tiny_model: Path) -> list[str]:
    """The recipe grpo_math in small: a random model, and a reward that random text can win."""
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
    ]


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
