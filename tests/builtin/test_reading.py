"""The built-in task of reading: the same rows for ever, right answers, a test set that was never trained on."""

from __future__ import annotations

import re

import pytest

from rlkit.builtin.reading import EXAMPLE, Row, build_reading_rows

FACTS = re.compile(r"(\w+) is a (\w+)\. (\w+) is a (\w+)\. What is (\w+)\? Answer with one word only\.")


def read_facts(row: Row) -> tuple[str, ...]:
    """First person and job, second person and job, and the person who is asked for."""
    *example, question = row["prompt"]
    assert tuple(example) == EXAMPLE and question["role"] == "user"
    found = FACTS.fullmatch(question["content"])
    assert found
    return found.groups()


def test_every_answer_is_the_job_of_the_one_who_is_asked_for() -> None:
    rows = build_reading_rows("train") + build_reading_rows("test")
    asked = [0, 0]
    for row in rows:
        first, first_job, second, second_job, person = read_facts(row)
        assert row["answer"] == {first: first_job, second: second_job}[person] and len({first, second}) == len({first_job, second_job}) == 2
        asked[person == second] += 1
    assert abs(asked[0] / len(rows) - 0.5) < 0.02


def test_rows_are_the_same_for_ever_and_none_of_the_test_is_in_train() -> None:
    train, test = build_reading_rows("train"), build_reading_rows("test")
    assert (len(train), len(test)) == (8_000, 1_000)
    assert build_reading_rows("train") == train
    assert test[0]["prompt"][-1]["content"] == "Henry is a baker. Ben is a doctor. What is Henry? Answer with one word only."
    assert len({read_facts(row)[:4] for row in train + test}) == 9_000
    with pytest.raises(ValueError, match="the built-in task reading has no split"):
        build_reading_rows("dev")
