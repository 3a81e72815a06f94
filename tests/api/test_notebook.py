"""rlkit.train in a notebook: the blocks of rlkit/docs/python.md are its cells; then a run is interrupted, and resumed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, environment

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "rlkit" / "docs" / "python.md").read_text(), re.DOTALL)
INTERRUPTED = """
import json, os, signal, threading, time
from pathlib import Path
import rlkit
from rlkit.errors import Stopped

def interrupt():
    log = Path("stopped/metrics.jsonl")
    while not (log.exists() and log.read_text().count("\\n") >= 2):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)   # what Stop does

def train(function):
    rows = [{"question": "1+1?", "answer": "2"}]
    size = {"steps": 60, "prompts_per_step": 2, "samples_per_prompt": 2, "max_completion_tokens": 4}
    return rlkit.train("grpo_math", size, engine={"rollout": "hf"}, data=rows, rewards={"bonus": function}, output_dir="stopped")

bonus = 3.0
threading.Thread(target=interrupt).start()
try:
    train(lambda completion: len(completion) + bonus)
except Stopped as stopped:
    print("STOPPED", stopped)
"""
RESUMED = """
bonus = 5.0
rows_of = train(lambda completion: len(completion) + bonus)
print("RESUMED", json.dumps([len(rows_of.metrics), rows_of.metrics[-1]["attempt"]]))
print("REWARDS", json.dumps(sorted({s["reward"] - len(s["completion"]) for s in rows_of.samples})))
"""


def execute(cells: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each cell of a notebook printed or returned."""
    for name, value in environment(IPYTHONDIR=str(folder / "ipython")).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return ["".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs) for cell in notebook.cells]


@pytest.mark.slow
def test_the_page_and_a_second_run_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, result, evaluated, recipe, mistake, stopped = execute([*BLOCKS, INTERRUPTED], tmp_path, monkeypatch)
    assert "step 2/2  reward" in train and "python:short" in train
    [folder] = (tmp_path / "runs" / "grpo_math").iterdir()
    assert result == f"PosixPath('{folder}')" and (folder / "model" / "config.json").is_file()
    accuracy, in_run, step = re.findall(r"[\d.]+", evaluated.splitlines()[-1])
    assert accuracy == in_run and step == "2" and (tmp_path / "my_model" / "config.json").is_file()
    assert recipe == "(0.0001, 2, 8)"
    assert mistake == "unknown key sampels_per_prompt (did you mean samples_per_prompt?)\n"
    assert re.search(r"STOPPED stopped after step \d+ of 60, saved; go on with output_dir=\S+/stopped", stopped)


@pytest.mark.nightly(part="faults")
def test_a_stopped_run_goes_on_with_the_function_as_it_is_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, resumed = execute([INTERRUPTED, RESUMED], tmp_path, monkeypatch)
    assert "STOPPED" in stopped
    assert "RESUMED [60, 2]" in resumed and "REWARDS [3.0, 5.0]" in resumed
    written = "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".safetensors")
    assert "python:bonus" in written and not re.search(r"cloudpickle(?!-\d)", written)  # but for its version, no pickled function
