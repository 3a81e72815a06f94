from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_small_fault_is_seen() -> None:
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("mutants.py"))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found, _, of = done.stdout.splitlines()[-1].split()[:3]
    assert found == of and int(of) >= 30
