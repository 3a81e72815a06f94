"""What DeepSpeed's ZeRO takes in an update is what was planned: by hand, and in address space, as RSS does not show all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkit.profiling.zero_estimate import ZeroMemory
from tests.conftest import run

MIB = 2**20
SLACK = 3 * MIB  # Python takes its own memory a MiB at a time; the smallest of what is planned has 8
CASES = {
    1: ["1:bfloat16:float32", "1:bfloat16:own", "1:float32:own", "1:bfloat16:offload"],
    4: ["1:bfloat16:float32", "2:bfloat16:float32", "3:bfloat16:float32", "3:bfloat16:own"],
}


def test_7_billion_weights_by_hand() -> None:
    """Of which 545 million are in one tensor, in GB: gradients of bfloat16 weights in float32, and in bfloat16."""
    wide = ZeroMemory(7_616_000_000, 545_000_000, 2, 1, 1, float32_gradients=True)
    narrow = ZeroMemory(7_616_000_000, 545_000_000, 2, 1, 1, float32_gradients=False)
    assert (wide.state, wide.gradients, narrow.gradients) == (12 * 7.616e9, 4 * 7.616e9, 2 * 7.616e9)
    assert wide.reduction == narrow.reduction == wide.fixed == 0.0
    assert wide.step == narrow.step == 8 * 545e6  # the norm of the largest tensor in float64; its copies take 4 and 6 bytes
    assert (wide.incoming, narrow.incoming) == (6 * 545e6, 2 * 545e6)
    eight = ZeroMemory(7_616_000_000, 545_000_000, 2, 8, 2, float32_gradients=True)
    assert (eight.gradients, eight.step) == (4 * 952e6, 545e6)
    assert eight.reduction == 2 * 2 * 2**27 + 2 * 545e6  # two buckets, and the head, which is reduced alone


def measure(world: int, cases: list[str], tmp_path: Path, **extra: Any) -> dict[str, dict[str, int]]:
    out = tmp_path / "bytes.json"
    ended = run(str(world), str(out), *cases, program="zero_memory.py", OMP_NUM_THREADS="1", ZERO_EXTRA=json.dumps(extra))
    assert ended.code == 0, ended.out + ended.err
    found: dict[str, dict[str, int]] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("world", CASES)
def test_an_update_takes_the_address_space_that_was_planned(world: int, tmp_path: Path) -> None:
    """In a pass, a product of bfloat16 matrices on a CPU has a result in float32 beside it, which is less than half of
    the rest; the weights that ZeRO 3 gathers are planned elsewhere."""
    for case, found in measure(world, CASES[world], tmp_path).items():
        print(world, case, {name: round(size / MIB, 1) for name, size in found.items()})
        stage = int(case[0])
        if case.endswith("offload"):  # on a CPU the host's memory is the device's: new weights are not sent back
            assert found["state"] == pytest.approx(found["predicted_state"] - 42 * MIB, abs=SLACK), case
            continue
        assert stage == 3 or found["state"] == pytest.approx(found["predicted_state"], abs=SLACK), case
        assert found["kept"] == pytest.approx(found["gradients"] if stage < 3 else 0, abs=SLACK), case
        assert found["step"] == pytest.approx(found["kept"] + found["predicted_step"], abs=SLACK), case
        planned = found["gradients"] + found["reduction"] + found["incoming"]
        assert stage == 3 or planned - SLACK <= found["backward"] <= 1.5 * planned, case


def test_with_contiguous_gradients_a_step_of_zero_1_holds_them_twice(tmp_path: Path) -> None:
    """What DeepSpeed does by default."""
    case = "1:bfloat16:own"
    own = measure(1, [case], tmp_path)[case]
    contiguous = measure(1, [case], tmp_path, zero_optimization={"contiguous_gradients": True})[case]
    assert own["step"] == pytest.approx(42 * MIB + 32 * MIB, abs=SLACK)  # the gradients, and the norm of the largest of them
    assert contiguous["step"] >= 2 * 42 * MIB
