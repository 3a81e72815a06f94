"""Graded code on rows of every public format, and under attack: in each sandbox what is right earns 1, and what is wrong 0."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rlkit.rewarding.resolve import import_reward
from rlkit.rewarding.sandbox import Sandbox
from tests.rewarding.conftest import box  # noqa: F401 - a fixture
from tests.rewards.code_attacks import ATTACKS
from tests.rewards.code_rows import ROWS

code_tests = import_reward("code_tests")


def grade(job: tuple[str, str, Any, dict[str, Any]]) -> tuple[str, float | str]:
    name, code, tests, columns = job
    try:
        return name, code_tests(f"Here it is:\n```python\n{code}\n```", tests, **columns)["score"]
    except Exception as error:  # noqa: BLE001 - that is what the tests look for
        return name, repr(error)


def grade_all(jobs: list[tuple[str, str, Any, dict[str, Any]]]) -> list[tuple[str, float | str]]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(grade, jobs))


def test_right_programs_pass_and_wrong_ones_fail() -> None:
    assert len(ROWS) >= 60
    jobs = [(name, row.right, row.tests, row.columns) for name, row in ROWS.items()]
    assert [graded for graded in grade_all(jobs) if graded[1] != 1.0] == []
    jobs = [(f"{name}: {wrong}", wrong, row.tests, row.columns) for name, row in ROWS.items() for wrong in row.wrong]
    assert [graded for graded in grade_all(jobs) if graded[1] != 0.0] == []


@pytest.mark.parametrize("box", ["namespaces", "landlock"], indirect=True)  # what differs on older kernels is tried in test_escapes.py
def test_attacks_earn_nothing_and_void_no_sample(box: Sandbox) -> None:  # noqa: F811
    assert len(ATTACKS) >= 40
    columns = {"prompt": "Write f, the square of a number.", "memory_mib": 256, "seconds": 0.5}
    jobs = [
        (name, code, tests, columns | ({"entry_point": "f"} if isinstance(tests, str) and "check" in tests else {}))
        for name, (tests, code) in ATTACKS.items()
    ]
    assert [graded for graded in grade_all(jobs) if graded[1] != 0.0] == []
