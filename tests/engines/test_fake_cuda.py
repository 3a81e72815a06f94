"""The code paths of a GPU without one: shapes, dtypes and devices of the packed attention and the head, forward and backward, and the
order of streams around copies. No number is computed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkit.engines import offload
from tests.conftest import ROOT, environment

PROGRAMS = ROOT / "tests" / "programs"
PROMPT, LENGTHS = 7, [1, 63, 64, 65, 700]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What fake_cuda.py writes."""
    compiler, spec = shutil.which("g++"), find_spec("torch")
    if compiler is None:
        pytest.skip("no g++: fake GPUs need a small library")
    assert spec is not None and spec.origin is not None
    folder, place = tmp_path_factory.mktemp("fake"), Path(spec.origin).parent
    guard = folder / "guard.so"
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{place / 'include'}", f"-L{place / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run([compiler, str(PROGRAMS / "fake_cuda.cpp"), "-o", str(guard), *flags], check=True, timeout=200)
    words = [sys.executable, str(PROGRAMS / "fake_cuda.py"), str(guard), str(folder / "out.json")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return written


@pytest.mark.slow
def test_the_packed_attention_is_one_call_of_flash_attention_and_one_backward(found: dict[str, Any]) -> None:
    """Head dims 64 and 128, one and six query heads a key head, windows, prompts alone and shared."""
    assert len(found["attention"]) == 16
    for (dim, groups, window, shared), seen in found["attention"]:
        row = seen["row"]
        assert sum(LENGTHS) < row <= sum(LENGTHS) + PROMPT * (1 if shared else len(LENGTHS))
        assert seen["output"] == ["cuda:0", "bfloat16", 1, row, 12, dim]
        assert seen["slopes"] == seen["heads"] and [heads[3] for heads in seen["heads"]] == [12, 12 // groups, 12 // groups]
        assert seen["keys"] == row + shared * PROMPT * (len(LENGTHS) - 1)  # those of a shared prompt are there for each of its completions
        assert seen["most"][1] - seen["most"][0] == shared * PROMPT and max(LENGTHS) < seen["most"][1] <= max(LENGTHS) + PROMPT
        assert seen["bounds"] == [["cuda:0", "int32", len(LENGTHS) + 1]] * 2
        assert seen["window"] == [-1 if window is None else 255, 0] and seen["backward"] == 1


@pytest.mark.slow
def test_a_packed_row_is_on_the_device_it_was_asked_for(found: dict[str, Any]) -> None:
    assert found["left"] == [[], []]


@pytest.mark.slow
def test_a_policy_goes_forward_and_back_without_leaving_the_device(found: dict[str, Any]) -> None:
    for seen, width in zip(found["policy"], (5, 300), strict=True):
        assert seen["grids"] == [["cuda:0", "float32", 2, width]] * 2
        assert seen["gradients"] == [["cuda:0", "bfloat16"]]
        assert seen["waits"] == 0


def test_copies_wait_for_the_work_before_them_and_the_device_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream of its own: a copy out also holds the host until it is done, for the storage is freed then."""
    order: list[str] = []

    class Stream(SimpleNamespace):
        def wait_stream(self, other: Any) -> None:
            order.append(f"{self.name} waits for {other.name}")

        def synchronize(self) -> None:
            order.append(f"host waits for {self.name}")

        def __enter__(self) -> None:
            order.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            order.append(f"off {self.name}")

    fakes = {
        "current_stream": lambda device: Stream(name="main"),
        "Stream": lambda device: Stream(name="side"),
        "stream": lambda side: side,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    storages: list[Any] = [SimpleNamespace(device=torch.device("cuda", 0))] * 2
    for wait in (True, False):
        order.clear()
        with offload.copy_stream(storages, wait=wait):
            order.append("copy")
        assert order == [
            *("side waits for main", "on side", "copy", "off side", "main waits for side"),
            *(["host waits for side"] if wait else []),
        ]
