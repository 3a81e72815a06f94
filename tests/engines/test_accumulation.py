"""Micro-batches of a model in bfloat16 add up in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run


@pytest.mark.parametrize(("ranks", "stages"), [(1, (1, 3)), (2, (1, 2, 3))])
def test_many_micro_batches_are_as_near_to_float64_as_one_large_one(ranks: int, stages: tuple[int, ...], tmp_path: Path) -> None:
    """96 of 8 rows; without it, each sum is rounded to 8 bits again."""
    out = tmp_path / "errors.json"
    ended = run(str(out), *map(str, stages), program="accumulation.py", ranks=ranks, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    found = json.loads(out.read_text())
    print(found)
    assert found.keys() == {str(stage) for stage in stages}
    for stage, errors in found.items():
        assert errors["one"] < 6e-3 and errors["float32"] < 1.2 * errors["one"], stage
        assert errors["bfloat16"] > 2 * errors["float32"], stage
        assert errors["overlap"], stage  # of communication and computation: not a bit is different
