"""The built-in task of reading: who has which job, answered with that one word and nothing else.

A prompt states two people's jobs and asks for one of them, after an example with its answer. A small instruction-tuned model often names
the other person's job, or writes a sentence.
"""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

TASK_SEED = 41_269
TEST_PROBLEMS, TRAIN_PROBLEMS = 1_000, 8_000
NAMES = (
    *("Ann", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry"),
    *("Ivan", "Julia", "Karl", "Laura", "Mark", "Nina", "Oscar", "Paula"),
)
JOBS = ("baker", "doctor", "teacher", "farmer", "pilot", "nurse", "painter", "lawyer", "singer", "writer")
EXAMPLE = (
    {"role": "user", "content": "Zoe is a sailor. Tom is a cook. What is Tom? Answer with one word only."},
    {"role": "assistant", "content": "cook"},
)

Row = dict[str, Any]


def build_reading_rows(split: str) -> list[Row]:
    """All rows of "train" or "test", always the same rows in the same order: `prompt` (chat messages) and `answer` (a word).

    No two rows state the same jobs of the same people in the same order. Raises ValueError for another split.
    """
    rng = random.Random(TASK_SEED)
    facts = [(people, jobs) for people in permutations(NAMES, 2) for jobs in permutations(JOBS, 2)]
    rng.shuffle(facts)
    splits = {"test": facts[:TEST_PROBLEMS], "train": facts[TEST_PROBLEMS : TEST_PROBLEMS + TRAIN_PROBLEMS]}
    if split not in splits:
        raise ValueError(f'the built-in task reading has no split "{split}"; it has train and test')
    return [_build_row(people, jobs, random.Random(f"{TASK_SEED} {people} {jobs}").randrange(2)) for people, jobs in splits[split]]


def _build_row(people: tuple[str, ...], jobs: tuple[str, ...], asked: int) -> Row:
    facts = " ".join(f"{person} is a {job}." for person, job in zip(people, jobs, strict=True))
    question = f"{facts} What is {people[asked]}? Answer with one word only."
    return {"prompt": [*EXAMPLE, {"role": "user", "content": question}], "answer": jobs[asked]}
