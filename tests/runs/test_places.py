"""The places where a run must work: without any network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import command, environment


def test_a_run_in_an_empty_network_namespace(small_vllm: list[str], tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces (unshare -n): that a run needs no network was not tried")
    words = ["unshare", "-n", *command(*small_vllm, "steps=1", "offline=true", f"output_dir={tmp_path / 'run'}")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: 1 steps" in done.stdout
