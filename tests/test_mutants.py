from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

SCRIPT = Path(__file__).with_name("mutants.py")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_small_faults_are_seen() -> None:
    """Every fifth fault of the list, in two processes beside each other; `python tests/mutants.py` goes through all of them."""
    shares = ["1/10", "6/10"]
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), share], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for share in shares
    ]
    told = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    seen = [text.splitlines()[-1].split()[:3] for text in told]
    assert all(found == of for found, _, of in seen) and sum(int(of) for _, _, of in seen) >= len(MUTANTS) // 5 >= 30
