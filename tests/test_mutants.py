from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_small_faults_are_seen() -> None:
    ended = subprocess.run([sys.executable, str(Path(__file__).with_name("mutants.py"))], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == f"{len(MUTANTS)} of {len(MUTANTS)} faults seen" and len(MUTANTS) >= 150
