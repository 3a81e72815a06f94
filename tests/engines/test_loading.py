from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import run


def test_under_zero_3_each_of_two_processes_keeps_its_half_as_it_loads(tiny_model: Path, tmp_path: Path) -> None:
    """Before DeepSpeed's engine is made, which puts on a GPU what is there; a model loaded afterwards is whole."""
    ended = run(str(tiny_model), str(tmp_path / "held.json"), program="loading.py", ranks=2, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    whole, *held = json.loads((tmp_path / "held.json").read_text())
    assert whole == 58_880
    assert held == [whole // 2] * 2
