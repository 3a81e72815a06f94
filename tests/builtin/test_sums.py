"""The built-in task of sums: the same rows for ever, right answers, a test set that was never trained on."""

from __future__ import annotations

import random

import pytest

from rlkit.builtin import sums


def operands(row: sums.Row) -> tuple[int, int]:
    left, right = row["problem"].split(" + ")
    return int(left), int(right)


def carries(row: sums.Row) -> bool:
    left, right = operands(row)
    return left % 10 + right % 10 >= 10


def boxed(text: str) -> str:
    return text.rpartition("\\boxed{")[2].removesuffix("}")


def test_the_first_rows_stay_what_they_are() -> None:
    assert sums.build_rows("test", 2) == [
        {"prompt": [{"role": "user", "content": "What is 27 + 18?"}], "answer": "45", "problem": "27 + 18"},
        {"prompt": [{"role": "user", "content": "What is 39 + 87?"}], "answer": "126", "problem": "39 + 87"},
    ]
    assert (len(sums.build_rows("train")), len(sums.build_rows("test"))) == (3_625, 1_000)
    assert sums.build_rows("train", 7) == sums.build_rows("train")[:7]


def test_rows_neither_use_nor_move_the_global_random_state() -> None:
    random.seed(1)
    before, rows = random.getstate(), sums.build_rows("train", 5)
    assert random.getstate() == before
    random.seed(2)
    assert sums.build_rows("train", 5) == rows


def test_no_held_out_problem_is_trained_on_in_either_order() -> None:
    train = {frozenset(operands(row)) for row in sums.build_rows("train")}
    test = [frozenset(operands(row)) for row in sums.build_rows("test")]
    assert len(set(test)) == 1_000
    assert not train & set(test)


def test_65_of_100_problems_have_a_carry() -> None:
    assert sum(map(carries, sums.build_rows("test"))) == 650
    train = sums.build_rows("train")
    assert abs(sum(map(carries, train)) / len(train) - 0.65) < 0.001


def test_the_careful_solution_is_right_and_the_careless_one_is_ten_short_where_there_is_a_carry() -> None:
    for row in sums.build_rows("train") + sums.build_rows("test"):
        right = sum(operands(row))
        assert row["answer"] == str(right)
        assert boxed(sums.write_solution(row, careful=True)) == str(right)
        assert boxed(sums.write_solution(row, careful=False)) == str(right - 10 if carries(row) else right)


def test_a_pair_prefers_the_careful_solution_of_every_problem_that_carries() -> None:
    assert sums.build_pairs("test")[0] == {
        "prompt": [{"role": "user", "content": "What is 27 + 18?"}],
        "chosen": "7+8=15\n2+1+1=4\n\\boxed{45}",
        "rejected": "7+8=15\n2+1=3\n\\boxed{35}",
    }
    assert [len(sums.build_pairs(split)) for split in ("train", "test")] == [2_356, 650]
    for row, pair in zip(filter(carries, sums.build_rows("train")), sums.build_pairs("train"), strict=True):
        assert pair["prompt"] == row["prompt"] and int(boxed(pair["chosen"])) == int(boxed(pair["rejected"])) + 10 == int(row["answer"])


@pytest.mark.parametrize(
    ("problem", "careful", "text"),
    [
        ("47 + 38", True, "7+8=15\n4+3+1=8\n\\boxed{85}"),
        ("47 + 38", False, "7+8=15\n4+3=7\n\\boxed{75}"),
        ("42 + 31", True, "2+1=3\n4+3=7\n\\boxed{73}"),
        ("99 + 99", True, "9+9=18\n9+9+1=19\n\\boxed{198}"),
    ],
)
def test_the_text_of_a_solution(problem: str, careful: bool, text: str) -> None:
    assert sums.write_solution({"problem": problem}, careful) == text
    assert len(text.encode()) <= 29  # bytes are tokens, and tokens are time


def test_35_of_100_demonstrations_carry() -> None:
    rng, row = random.Random(0), {"problem": "47 + 38"}
    texts = [sums.write_demonstration(row, rng) for _ in range(10_000)]
    assert set(texts) == {sums.write_solution(row, careful=True), sums.write_solution(row, careful=False)}
    assert abs(texts.count(sums.write_solution(row, careful=True)) / 10_000 - 0.35) < 0.015  # three standard deviations


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(ValueError, match=r'no split "validation"; it has train, test'):
        sums.build_rows("validation")
    with pytest.raises(ValueError, match=r"1000 test rows, not 1001"):
        sums.build_rows("test", 1_001)
