from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import LOCK, MUTANTS


def faults(*words: str) -> list[str]:
    """What the program printed, line by line; every fault that it tried was seen."""
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutants.py")), *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_small_faults_in_changed_files_are_seen() -> None:
    faults("--changed")


@pytest.mark.nightly(part="faults")
@pytest.mark.timeout(3000)
def test_small_faults_are_seen() -> None:
    assert faults()[-1] == f"{len(MUTANTS)} of {len(MUTANTS)} faults seen" and len(MUTANTS) >= 150
    assert LOCK.is_file()
